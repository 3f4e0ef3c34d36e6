"""Pairs: what each source of a later iteration's pairs is made of."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rerankjax.candidates.candidate import Candidate, read_candidates, write_candidates
from rerankjax.loop import stages
from rerankjax.loop.config import ConfigError
from rerankjax.pairs.mining import (
    PAIR_SOURCES,
    LabelledSolutions,
    Pair,
    hardest,
    later_pairs,
    partition_by_verdict,
    read_pairs,
    sample_pairs,
    write_pairs,
)


def candidate(problem, completion, verdict):
    return Candidate(problem, 0, completion, -1.0, 3, True, verdict)


OLD = LabelledSolutions(
    passing=(("p", "good"), ("q", "fine")),
    failing=(("p", "bad"), ("q", "poor"), ("lonely", "never")),
)
NEW = [candidate("p", f"new{i}", "failed") for i in range(8)] + [candidate("p", "newgood", "passed")]
SCORES = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6, 5.0])


def grown(source, **more):
    settings = {"count": 20, "new_fraction": 0.5, "hard_fraction": 0.5, "seed": [0]} | more
    return later_pairs(source, OLD, NEW, SCORES, **settings)


def test_splitting_keeps_each_solution_once_and_judges_none_that_was_not_judged():
    found = partition_by_verdict(
        [
            candidate("p", "a", "passed"),
            candidate("p", "a", "passed"),
            candidate("q", "a", "timeout"),
            candidate("p", "b", "sandbox error"),
            candidate("p", "c", ""),
        ]
    )
    assert found == LabelledSolutions((("p", "a"),), (("q", "a"),))


def test_pairs_are_of_one_problem_and_use_every_negative_equally():
    pairs = sample_pairs(OLD, 40, [0])
    assert {(p.problem, p.chosen, p.rejected) for p in pairs} == {("p", "good", "bad"), ("q", "fine", "poor")}
    assert sum(p.problem == "p" for p in pairs) == 20
    assert sample_pairs(OLD, 40, [0]) == pairs != sample_pairs(OLD, 40, [1])


def test_no_pair_can_be_made_without_both_kinds():
    with pytest.raises(ValueError, match="none of 1 problems"):
        sample_pairs(LabelledSolutions((("p", "a"),), (("q", "b"),)), 4, [0])


def test_the_hardest_are_the_failures_scored_highest():
    assert [c for _, c in hardest(NEW, SCORES, 3)] == ["new1", "new3", "new5"]


@pytest.mark.parametrize("source", PAIR_SOURCES)
def test_every_source_gives_as_many_pairs_and_never_calls_a_failure_chosen(source):
    pairs = grown(source)
    assert len(pairs) == 20
    assert all(p.chosen in {"good", "fine", "newgood"} for p in pairs)
    assert all(p.rejected not in {"good", "fine", "newgood"} for p in pairs)


def test_sources_differ_in_what_the_paper_says():
    rejected = {source: {p.rejected for p in grown(source) if p.rejected.startswith("new")} for source in PAIR_SOURCES}
    chosen = {source: {p.chosen for p in grown(source, count=200)} for source in PAIR_SOURCES}
    assert rejected["same_data"] == set()
    assert rejected["hard"] == rejected["self_training"] == {"new1", "new3", "new5", "new7"}
    assert rejected["random"] != rejected["hard"]
    assert len(rejected["random"]) == 4
    assert chosen["self_training"] == {"good", "fine", "newgood"}
    assert chosen["hard"] == chosen["random"] == chosen["same_data"] == {"good", "fine"}
    assert all(
        sum(p.rejected.startswith("new") for p in grown(source)) == 10
        for source in PAIR_SOURCES
        if source != "same_data"
    )


def test_files_give_back_what_was_written(tmp_path):
    pairs = [Pair("p", "a\nb", "é\u2028")]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    sampled = [candidate("p", "x = 1\n", "failed"), candidate("q", "", "passed")]
    write_candidates(tmp_path / "c.parquet", sampled)
    assert read_candidates(tmp_path / "c.parquet") == sampled


def test_a_run_whose_samples_all_fail_says_what_to_change():
    run = SimpleNamespace(
        seed=0,
        config=SimpleNamespace(
            lora=SimpleNamespace(rank=0), sft=SimpleNamespace(enabled=False), reranker=SimpleNamespace(members=1)
        ),
        reranker=SimpleNamespace(name="reranker"),
        stage=lambda name, inputs, fill, everywhere: fill(Path(), None),
    )
    solutions = partition_by_verdict([candidate("p", "a", "failed")])
    with pytest.raises(ConfigError, match=r"^seed 0, reranker first: none of 0 .*; raise config.candidates.train or "):
        stages._reranker(
            run, "first", {}, dict, lambda *_: sample_pairs(solutions, 4, [0]), "reranker_training", [0], []
        )

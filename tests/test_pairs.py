"""Pairs: what each arm of the second iteration is made of."""

import numpy as np
import pytest

from rerankjax.candidates.candidate import Candidate, read_candidates, write_candidates
from rerankjax.pairs.mining import ARMS, Mined, Pair, grow, hardest, pair_up, read_pairs, split, write_pairs


def candidate(problem, completion, verdict):
    return Candidate(problem, 0, completion, -1.0, 3, True, verdict)


OLD = Mined(
    passing=(("p", "good"), ("q", "fine")),
    failing=(("p", "bad"), ("q", "poor"), ("lonely", "never")),
)
NEW = [candidate("p", f"new{i}", "failed") for i in range(8)] + [candidate("p", "newgood", "passed")]
SCORES = np.array([0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6, 5.0])


def grown(arm, **more):
    settings = {"count": 20, "new_share": 0.5, "hard_share": 0.5, "seed": [0]} | more
    return grow(arm, OLD, NEW, SCORES, **settings)


def test_splitting_keeps_each_solution_once_and_judges_none_that_was_not_judged():
    found = split(
        [
            candidate("p", "a", "passed"),
            candidate("p", "a", "passed"),
            candidate("q", "a", "timeout"),
            candidate("p", "b", "sandbox error"),
            candidate("p", "c", ""),
        ]
    )
    assert found == Mined((("p", "a"),), (("q", "a"),))


def test_pairs_are_of_one_problem_and_use_every_negative_equally():
    pairs = pair_up(OLD, 40, [0])
    assert {(p.problem, p.better, p.worse) for p in pairs} == {("p", "good", "bad"), ("q", "fine", "poor")}
    assert sum(p.problem == "p" for p in pairs) == 20
    assert pair_up(OLD, 40, [0]) == pairs != pair_up(OLD, 40, [1])


def test_no_pair_can_be_made_without_both_kinds():
    with pytest.raises(ValueError, match="none of 1 problems"):
        pair_up(Mined((("p", "a"),), (("q", "b"),)), 4, [0])


def test_the_hardest_are_the_failures_scored_highest():
    assert [c for _, c in hardest(NEW, SCORES, 3)] == ["new1", "new3", "new5"]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_as_many_pairs_and_never_calls_a_failure_better(arm):
    pairs = grown(arm)
    assert len(pairs) == 20
    assert all(p.better in {"good", "fine", "newgood"} for p in pairs)
    assert all(p.worse not in {"good", "fine", "newgood"} for p in pairs)


def test_arms_differ_in_what_the_paper_says():
    worse = {arm: {p.worse for p in grown(arm) if p.worse.startswith("new")} for arm in ARMS}
    better = {arm: {p.better for p in grown(arm, count=200)} for arm in ARMS}
    assert worse["control"] == set()
    assert worse["hard"] == worse["self_training"] == {"new1", "new3", "new5", "new7"}
    assert worse["random"] != worse["hard"]
    assert len(worse["random"]) == 4
    assert better["self_training"] == {"good", "fine", "newgood"}
    assert better["hard"] == better["random"] == better["control"] == {"good", "fine"}
    assert all(sum(p.worse.startswith("new") for p in grown(arm)) == 10 for arm in ARMS if arm != "control")


def test_files_give_back_what_was_written(tmp_path):
    pairs = [Pair("p", "a\nb", "é\u2028")]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    sampled = [candidate("p", "x = 1\n", "failed"), candidate("q", "", "passed")]
    write_candidates(tmp_path / "c.parquet", sampled)
    assert read_candidates(tmp_path / "c.parquet") == sampled

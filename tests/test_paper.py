"""The paper's rows: configs that say what they assume, stages that rows share, cells, and what is refused."""

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rerankjax.loop.experiment import ConfigError
from rerankjax.loop.paper import cell_of, run_row
from rerankjax.loop.paper_config import resolve_row, shared
from rerankjax.loop.paper_problems import common_name
from rerankjax.results.cells import load_all

from rerankjax.candidates.candidate import Candidate, read_candidates
from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.policy.ppo import PPOConfig, Reward, collect
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.reranker.rerank import score_behind
from rerankjax.results.paper import LANGUAGES, ROWS, RUNS
from rerankjax.run.rundir import RunDirectoryError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
from paper_rows import CONFIGS, load_row, smoke_inputs, write_made_up  # noqa: E402

# What the paper gives: its models and benchmarks, the loop's objectives, its languages and rows.
GIVEN = ("row", "models", "reranker", "evaluation.python", "evaluation.multipl_e", "evaluation.languages")
GIVEN += ("evaluation.mbpp", "evaluation.mbpp_shots")
# What only says how it is computed, or that all problems are evaluated.
MACHINE = ("remat", "mesh", "checkpoints", "sandbox", "candidates.batch_size", "sampling.top_p", "evaluation.problems")
LOOP = ("problems", "sft", "sft_on_solutions", "candidates", "reranker_training", "retraining", "ppo", "mining", "lora")
LOOP += ("early_stopping", "max_prompt_length", "sampling.temperature", "evaluation.answers")


def leaves(section, name=""):
    for key, value in section.items():
        path = f"{name}.{key}" if name else key
        yield from leaves(value, path) if hasattr(value, "items") else [(path, value)]


def within(path, names):
    return any(path == name or path.startswith(f"{name}.") for name in names)


def docstring(row):
    text = (ROOT / "configs" / "paper" / CONFIGS[row].partition(":")[0]).read_text()
    return text.split('"""')[1]


def test_every_row_that_can_be_run_has_a_config_and_all_others_of_its_fields_in_common():
    assert CONFIGS.keys() == RUNS.keys()
    found = {name: resolve_row(load_row(name), 1) for name in RUNS}
    for name, p in found.items():
        row, paper = p.row, ROWS[RUNS[name]]
        assert row.name == name
        assert row.generator.upper() in f"{paper.model} {paper.size}" or paper.size == "13.4B"
        assert bool(row.reranker) == paper.model.startswith("RewardRanker") == (row.decoding == "reranked")
        assert bool(row.second_iteration) == ("2 iter." in paper.model)
        assert shared(p) == shared(found["1.3b-greedy"])
    assert p.evaluation.languages == tuple(LANGUAGES)


@pytest.mark.parametrize("name", RUNS)
def test_a_rows_docstring_names_what_the_paper_does_not_give(name):
    named = re.findall(r"`([a-z_.]+)`", docstring(name).partition("Assumed")[2])
    fields = dict(leaves(load_row(name)))
    for one in named:
        assert any(within(field, [one]) for field in fields), one
        assert not within(one, GIVEN), one
    used = [field for field in fields if not within(field, GIVEN + MACHINE)]
    if not load_row(name).row.reranker:
        used = [field for field in used if not within(field, LOOP)]
    elif not load_row(name).row.second_iteration:
        used = [field for field in used if not within(field, ["retraining"])]
    assert [field for field in used if not within(field, named)] == []


def test_the_common_docstring_gives_every_assumptions_value():
    text = (ROOT / "configs" / "paper" / "common.py").read_text().split('"""')[1]
    fields = dict(leaves(load_row("self-training")))
    values = re.findall(r"`([a-z_.]+)` = (\"?[\w.]+\"?)", text)
    assert len(values) > 10
    for field, value in values:
        assert repr(fields[field]).replace("'", '"') == value.rstrip("."), field
    named = {name for row in RUNS for name in re.findall(r"`([a-z_.]+)`", docstring(row).partition("Assumed")[2])}
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["row.generator=7b"], r"config.row.generator = '7b': use one of '1.3b', '6.7b', '33b'"),
        (["row.reranker="], r"config.row.reranker = '': use one of '1.3b'"),
        (["row.decoding=greedy"], r"config.row.reranker = '6.7b': use one of ''"),
        (["row.second_iteration=harder"], "config.row.second_iteration = 'harder': use one of '', 'control'"),
        (["evaluation.answers=both"], "config.evaluation.answers = 'both': use one of 'sft', 'policy'"),
        (["evaluation.languages=('py','rs')"], r"config.evaluation.languages = .*'rs'.*: give one or more of py"),
        (["evaluation.temperature=0"], "config.evaluation.temperature = 0.0: equal samples leave no choice"),
        (["ppo.batch_size=8192"], "config.ppo.batch_size = 8192"),
        (["ppo.kl_coeff=1"], "config.ppo.kl_coeff is unknown"),
        (["dtype=float99"], "float99"),
        (["kl"], "write it as field=value"),
    ],
)
def test_a_bad_field_is_refused_by_name(settings, said):
    with pytest.raises(ConfigError, match=said):
        resolve_row(load_row("hard-negatives", settings=settings), 1)


def test_a_model_of_no_size_is_refused():
    with pytest.raises(ConfigError, match=r"--model 7b: there is no such size; use one of 1.3b, 6.7b, 33b"):
        load_row("1.3b-greedy", ["7b=here"])


def candidates(**verdicts):
    return [
        Candidate(name, i, f"answer {i}", -1.0, 10 + i, True, "passed" if passed else "failed")
        for name, outcomes in verdicts.items()
        for i, passed in enumerate(outcomes)
    ]


def test_cells_of_hand_made_answers():
    p = {name: resolve_row(load_row(name), 1) for name in RUNS}
    answers = candidates(HumanEval_0_a=(1, 0, 0, 0), HumanEval_1_b=(1, 1, 0, 0))
    scores = np.array(
        [0.1, 0.5, 0.2, 0.2, 0.9, 0.3, 0.9, 0.1], np.float32
    )  # the second problem's first place is shared
    chosen = cell_of(p["6.7b+6.7b"], "java", answers, scores, 3.0)
    assert chosen.solved == {"HumanEval/0": 0.0, "HumanEval/1": 0.5}
    assert (chosen.row, chosen.language, chosen.n, chosen.tokens, chosen.seconds) == ("6.7b+6.7b", "java", 4, 92, 3.0)
    assert chosen.model.count("deepseek-coder-6.7b-instruct") == 2
    assert "nuprl/MultiPL-E" in chosen.model
    sampled = cell_of(p["6.7b-sampled"], "py", answers, None, 3.0)
    assert sampled.solved == {"HumanEval/0": 0.25, "HumanEval/1": 0.5}
    assert sampled.n == 1  # nothing was chosen
    assert "mean of 4 samples" in sampled.model
    greedy = cell_of(p["33b-greedy"], "mbpp", candidates(**{"MBPP/11": (1,), "MBPP/12": (0,)}), None, 3.0)
    assert (greedy.solved, greedy.language, greedy.n) == ({"MBPP/11": 1.0, "MBPP/12": 0.0}, "py", 1)


def test_translations_of_a_problem_have_one_name():
    assert common_name("HumanEval/12") == common_name("HumanEval_12_longest") == "HumanEval/12"
    assert common_name("HumanEval/1") != common_name("HumanEval_12_longest")
    assert common_name("MBPP/12") == "MBPP/12"


def test_ppo_is_rewarded_by_a_reranker_of_another_shape(tiny):
    """The score of what PPO drew is the one that the reranker gives by the other way, which shares prompts."""
    larger = dataclasses.replace(
        tiny, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=6
    )
    policy = {"decoder": init_decoder(tiny, jax.random.key(0))}
    reranker = init_reranker(init_decoder(larger, jax.random.key(1)), jax.random.key(2))
    rng, B, P, C = np.random.default_rng(0), 8, 6, 5
    prompts, mask = rng.integers(2, 97, (B, P)).astype(np.int32), np.ones((B, P), bool)
    ppo = PPOConfig(1, B, 1e-3, 1, 1, 0.1, missing_eos_penalty=9.0)
    stops = np.repeat(np.minimum(np.arange(C + 1) + 1, C)[:, None], 97, axis=1).astype(np.int32)  # all end after C
    draw = functools.partial(
        collect,
        tiny,
        "last",
        SamplingConfig(1.0, 1.0, C),
        ppo,
        1,
        0,
        make_mesh(),
        reward_config=larger,
    )
    reward = Reward(reranker, np.float32(0.5), np.float32(2.0))
    keys = jax.random.split(jax.random.key(3), B)
    found = jax.jit(draw)(policy, policy["decoder"], reward, prompts, mask, keys, stops)
    rows = np.asarray(found.rows.tokens[:, P:]), np.asarray(found.rows.mask[:, P:])
    scores = jax.jit(functools.partial(score_behind, larger, "last"))(reranker, prompts, mask, *rows)
    np.testing.assert_allclose(found.scores, np.clip((scores - 0.5) / 2.0, -5, 5), atol=1e-5)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the smoke run changes in a config, on eight devices and two languages; the cache it sets is set back."""
    folder = tmp_path_factory.mktemp("smoke")
    write_made_up(folder / "made-up")
    changes = smoke_inputs(folder, folder / "made-up") | {"evaluation.languages": ("py", "sh")}
    sections = "candidates", "sft", "reranker_training", "retraining", "ppo"
    cache = jax.config.jax_compilation_cache_dir
    yield changes | {f"{section}.batch_size": 8 for section in sections} | {"ppo.minibatches": 1}
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.fixture(scope="module")
def smoked(tmp_path_factory, inputs):
    """One row and then one that goes on from it, both on the SFT model's samples."""
    workdir = tmp_path_factory.mktemp("table1")
    seen = []
    for row in ("6.7b+6.7b", "hard-negatives"):
        run_row(load_row(row, changes=inputs, settings=["evaluation.answers=sft"]), str(workdir))
        seen.append({path: path.stat().st_mtime_ns for path in workdir.rglob("stage.json")})
    return workdir, *seen


@pytest.mark.long
def test_rows_share_what_they_have_alike(smoked):
    workdir, first, second = smoked
    assert all(second[path] == time for path, time in first.items())
    stages = {str(path.parent.relative_to(workdir)) for path in first}
    pair = "6.7b+6.7b"
    assert stages == {
        "problems",
        *(f"6.7b/{name}" for name in ("policies/sft", "candidates/sft-train", "candidates/given-train")),
        *(f"6.7b/candidates/sft-{language}" for language in ("py", "sh")),
        f"{pair}/rerankers/first",
        *(f"{pair}/scores/first/sft-{language}" for language in ("py", "sh")),
    }
    assert {str(path.parent.relative_to(workdir)) for path in second} - stages == {
        f"{pair}/policies/ppo",
        f"{pair}/candidates/ppo-train",
        *(f"{pair}/scores/first/{policy}-train" for policy in ("sft", "ppo")),
        f"{pair}/rerankers/hard",
        *(f"{pair}/scores/hard/sft-{language}" for language in ("py", "sh")),
    }


@pytest.mark.long
def test_a_row_ends_in_the_cells_of_what_was_executed(smoked):
    workdir, _, _ = smoked
    cells = {(cell.row, cell.language): cell for cell in load_all(workdir / "cells")}
    assert cells.keys() == {(row, language) for row in ("6.7b+6.7b", "hard-negatives") for language in ("py", "sh")}
    answers = read_candidates(workdir / "6.7b" / "candidates" / "sft-py" / "candidates.parquet")
    scores = np.load(workdir / "6.7b+6.7b" / "scores" / "hard" / "sft-py" / "scores.npy")
    assert len(answers) == len(scores) == 2 * cells["hard-negatives", "py"].n == 8
    assert all(a.verdict for a in answers)
    best = [answers[i + int(np.argmax(scores[i : i + 4]))].passed for i in (0, 4)]
    assert [bool(value) for value in cells["hard-negatives", "py"].solved.values()] == best
    assert "random-weights-6.7b" in cells["hard-negatives", "py"].model
    given = read_candidates(workdir / "6.7b" / "candidates" / "given-train" / "candidates.parquet")
    assert {c.verdict for c in given} == {"passed"}
    pairs = [json.loads(line) for line in (workdir / "6.7b+6.7b" / "rerankers" / "hard" / "pairs.jsonl").open()]
    sampled = [workdir / stage for stage in ("6.7b/candidates/sft-train", "6.7b+6.7b/candidates/ppo-train")]
    labelled = given + [c for path in sampled for c in read_candidates(path / "candidates.parquet")]
    for passed, which in ((True, "better"), (False, "worse")):
        right = {(c.problem, c.completion) for c in labelled if c.passed == passed}
        assert pairs
        assert {(pair["problem"], pair[which]) for pair in pairs} <= right


@pytest.mark.long
def test_another_config_in_the_directory_is_refused(smoked, inputs):
    with pytest.raises(RunDirectoryError, match=r'evaluation.answers: "sft" -> "policy"'):
        run_row(load_row("6.7b+6.7b", changes=inputs), str(smoked[0]))


def test_what_is_not_there_is_named(tmp_path, inputs):
    with pytest.raises(ConfigError, match=r"config.models: 1.3b cannot be loaded from '/nothing/here': .*is no folder"):
        run_row(load_row("1.3b-greedy", ["1.3b=/nothing/here"], changes=inputs), str(tmp_path))
    with pytest.raises(ConfigError, match=r"--problems /nothing: there is no humaneval-py.jsonl in it"):
        load_row("1.3b-greedy", problems=Path("/nothing"))
    missing = {"problems.sources": ({"source": "nothing.jsonl", "benchmark": "CodeContests"},)}
    with pytest.raises(ConfigError, match=r"problems of nothing.jsonl: .*No such file"):
        run_row(load_row("1.3b-greedy", changes=inputs | missing), str(tmp_path / "other"))


def test_training_on_the_benchmark_is_refused(tmp_path, inputs):
    row = {"name": "a", "language": "cpp", "prompt": "int f() {", "tests": "}", "stop_tokens": ["\n}"]}
    (tmp_path / "humaneval-cpp.jsonl").write_text(json.dumps(row))
    source = {"source": str(tmp_path / "humaneval-cpp.jsonl"), "benchmark": "MultiPL-E"}
    with pytest.raises(ConfigError, match=r"config.problems.sources: problem 'a' is of the benchmark MultiPL-E"):
        run_row(load_row("1.3b-greedy", changes=inputs | {"problems.sources": (source,)}), str(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("candidates"))

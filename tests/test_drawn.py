"""Samples that another engine drew, instead of the SFT model's."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs.mini import get_config
from rerankjax.candidates.drawn import digest, drawn_candidates, read_drawn
from rerankjax.loop import selection, stages
from rerankjax.loop.config import ConfigError
from rerankjax.loop.problem_sets import DEV, TRAIN
from rerankjax.loop.resolve import resolve
from rerankjax.loop.seed_run import SeedRun, open_seed
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.problems.problem import Problem, write_problems
from rerankjax.prompts.tokenizer import train_tokenizer

PROBLEMS = [
    Problem(f"p{i}", "py", f"def f{i}(x):\n", f"assert f{i}(1)", ("\ndef",), solution=f"    return {i}\n")
    for i in range(8)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(name: str, samples: int = 4, **fields: Any) -> dict[str, Any]:
    return {"name": name, "completions": [f"    return x + {i}\ndef g(" for i in range(samples)], **fields}


def opened(tmp_path: Path, rows: list[dict[str, Any]], **candidates: Any) -> SeedRun:
    """A seed of configs/mini.py:smoke on 8 problems, of which 4 are for training and 2 for dev."""
    write_problems(tmp_path / "problems.jsonl", PROBLEMS)
    config = get_config("smoke").unlock()
    config.problems = {"train": (str(tmp_path / "problems.jsonl"),), "dev_problems": 2, "test_problems": 2}
    config.evaluation = {"test": {"sources": ("held_out",), "samples": 4}}
    config.ppo.update({"batch_size": 4, "minibatches": 1})
    config.candidates.update(
        {"train": 3, "dev": 2, "prompts_in_flight": 1, "drawn": (write(tmp_path / "d.jsonl", rows),)}
    )
    config.candidates.update(candidates)
    config = resolve(config, 1)
    return open_seed(config, 0, tmp_path / "run", make_mesh(config.mesh, jax.devices()[:1]))


def test_rows_become_candidates(tmp_path: Path) -> None:
    rows = [row("p0", log_probabilities=[-1, -0.5, -2.0, 0.0]), row("p1"), row("unknown")]
    drawn = read_drawn([write(tmp_path / "d.jsonl", rows)])
    tokenizer = train_tokenizer(["    return x + 123\n"] * 3, 300)
    found = list(drawn_candidates(drawn, PROBLEMS[:2], 3, tokenizer))
    assert [(c.problem, c.sample) for c in found] == [(p, i) for p in ("p0", "p1") for i in range(3)]
    assert found[2].completion == "    return x + 2"  # cut at the stop token
    assert found[2].length == len(tokenizer("    return x + 2")["input_ids"]) + 1  # with its end
    assert [c.log_probability for c in found[:3]] == [-1.0, -0.5, -2.0]
    assert all(math.isnan(c.log_probability) for c in found[3:])
    assert digest(drawn, PROBLEMS[:2]) != digest(drawn, PROBLEMS[:1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"completions": ["x"]}], "d.jsonl, row 1: field 'name' is missing"),
        ([row("p0"), {"name": "p1"}], "d.jsonl, row 2: field 'completions' is missing"),
        ([row("p0", completions=[])], "d.jsonl, row 1: field 'completions' is empty"),
        ([row("p0", completions=["x", 1])], "row 1: field 'completions' must contain only strings; number 2 is 1"),
        ([row("p0", log_probabilities=[-1.0])], "must have one finite number per completion, 4 in all"),
        ([row("p0", log_probabilities=[-1.0, 0.0, math.nan, 0.0])], "must have one finite number per completion"),
        ([row("p0"), row("p0")], "d.jsonl, row 2: .*d.jsonl, row 1 has samples of 'p0' too; put them into one row"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_drawn([write(tmp_path / "d.jsonl", rows)])


def test_the_first_iteration_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sampled; a log-probability that is not given is the one under the policy."""
    rows = [row(p.name) for p in PROBLEMS]
    run = opened(
        tmp_path, [r | {"log_probabilities": [-1.0, -2.0, -3.0, -4.0]} if i % 2 else r for i, r in enumerate(rows)]
    )
    monkeypatch.setattr(stages, "generate", None)
    monkeypatch.setattr(
        stages,
        "execute",
        lambda _, problems, candidates, *__: [dataclasses.replace(c, verdict="passed") for c in candidates],
    )
    (run.path("policies") / "sft").mkdir(parents=True)
    (run.path("policies") / "sft/stage.json").write_text(
        '{"digest": "of a policy", "reads": {}, "inputs": {}, "facts": {}}'
    )
    policy = jax.jit(lambda: init_decoder(run.generator.shape, jax.random.key(0)))()
    for split, samples in ((TRAIN, 3), (DEV, 2), ("test", 4)):
        found = stages.candidates(run, "sft", lambda: policy, split)
        names = [p.name for p in run.problems[split].asked]
        assert [(c.problem, c.sample) for c in found] == [(name, i) for name in names for i in range(samples)]
        assert {c.completion for c in found} == {f"    return x + {i}" for i in range(samples)}
        under = selection.log_probs(run, "sft", lambda: policy, "sft", split, found)
        for c, value in zip(found, under, strict=True):
            expected = -1.0 - c.sample if int(c.problem[1:]) % 2 else value / c.length
            np.testing.assert_allclose(c.log_probability, expected, rtol=1e-5)


def test_what_cannot_be_taken_is_named_before_any_work(tmp_path: Path) -> None:
    names = [p.name for p in opened(tmp_path, [row(p.name) for p in PROBLEMS]).problems[TRAIN].asked]
    with pytest.raises(
        ConfigError, match=f"candidates.drawn = .*: 1 of 4 train problems have no row, such as {names[3]}; "
    ):
        opened(tmp_path, [row(name) for name in names[:3]])
    opened(tmp_path, [row(name) for name in names[:3]], train_problems=3)
    with pytest.raises(ConfigError, match=r"config.candidates.train = 5: .*d.jsonl, row 1 has 4 completions; lower it"):
        opened(tmp_path, [row(name) for name in names], train=5)
    with pytest.raises(ConfigError, match="none of its problems, such as 'q', is one of this run's, such as 'p"):
        opened(tmp_path, [row("q")])
    with pytest.raises(ConfigError, match=r"config.candidates.drawn: .*nowhere.jsonl"):
        opened(tmp_path, [], drawn=(str(tmp_path / "nowhere.jsonl"),))

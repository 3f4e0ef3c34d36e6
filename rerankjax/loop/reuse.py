"""Stages taken from another run: a sweep over PPO's settings needs no second SFT model, samples or first reranker.

A stage is the same in both runs unless their configs differ in what it, or a stage that it reads, is made from.
"""

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerankjax.run.rundir import FREE, RunDirectoryError, adopt_stage, complete, differing

# In the order of the loop: stages, and the fields they are the first to read. The first read all that others do not.
READ_BY = (
    (("problems", "tokenizer", "policies/sft"), ()),
    (("candidates/sft-*",), ("candidates.", "sandbox.")),
    (("rerankers/first", "scores/first/sft-*"), ("lora.", "mining.pairs", "reranker.", "reranker_training.")),
    (("policies/ppo", "candidates/ppo-*", "scores/first/ppo-*"), ("early_stopping.", "ppo.")),
    (("rerankers/*", "policies/*", "candidates/*", "scores/*/*"), ("mining.", "retraining.")),
)
READ_BY_NONE = ("seeds", "arms", "ppo_arms", "lambdas", *FREE)


def reuse(root: Path, other: Path, config: Mapping[str, Any]) -> list[str]:
    """Puts into the run at `root`, of the resolved `config`, what it lacks and the run at `other` has alike.

    Returns the stages taken, by their paths from `root`. Files are hard links where the file system has them.

    Raises:
        RunDirectoryError: `other` holds no run, or nothing that could be taken.
    """
    if not (other / "config.json").is_file():
        raise RunDirectoryError(f"--reuse={other}: no run is there (no config.json); give a run's --workdir")
    levels = {field: _level(field) for field in differing(other, config)}
    level = min(levels.values(), default=len(READ_BY))
    if level == 0:
        fields = ", ".join(field for field, first in levels.items() if first == 0)
        raise RunDirectoryError(f"--reuse={other}: no stage is alike, as the configs differ in {fields}")
    patterns = [pattern for stages, _ in READ_BY[:level] for pattern in stages]
    taken, seeds = [], [f"seed{seed}" for seed in config["seeds"]]
    for made in sorted(other.glob("seed*/**/stage.json"), key=lambda path: path.stat().st_mtime):
        stage = made.parent.relative_to(other)
        seed, name = stage.parts[0], "/".join(stage.parts[1:])
        alike = any(fnmatch.fnmatch(name, pattern) for pattern in patterns) and not stage.name.startswith(".")
        if alike and seed in seeds and not complete(root / stage):
            adopt_stage(root / stage, made.parent)
            taken.append(str(stage))
    return taken


def _level(field: str) -> int:
    """The first of `READ_BY` whose stages read a field; their number where none does."""
    if field.startswith(READ_BY_NONE):
        return len(READ_BY)
    return next((i for i, (_, fields) in enumerate(READ_BY) if fields and field.startswith(fields)), 0)

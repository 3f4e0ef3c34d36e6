"""Stages taken from other runs: a sweep over PPO's settings needs no second SFT model, samples or first reranker."""

import graphlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rerankjax.run.reads import differing, flatten
from rerankjax.run.rundir import RunDirectoryError, adopt_stage, complete, digest_of, read_manifest


def reuse(root: Path, others: Sequence[Path], config: Any, seeds: Sequence[int]) -> list[str]:
    """Puts each stage that the run at `root` lacks into it, from the first of `others` that has the same stage.

    A stage is the same if the fields that it read have this config's values, and the stages that it read are those of
    `root`. Only stages of `seeds` are taken. Returns the stages taken, by their paths from `root`. Files are hard links
    if the file system has them.

    Raises:
        RunDirectoryError: one of `others` holds no run, or no stage that could be taken.
    """
    now, taken = flatten(config), []
    for other in others:
        if not (other / "config.json").is_file():
            raise RunDirectoryError(f"--reuse={other}: this is not a run (no config.json); give a run's --workdir")
        refused: dict[str, tuple[str, str]] = {}
        same = 0
        made = _complete_stages(other, seeds)
        for stage in graphlib.TopologicalSorter({s: m["inputs"] for s, m in made.items()}).static_order():
            if stage not in made:
                continue
            reads, digest = made[stage]["reads"], made[stage]["digest"]
            refused |= (changes := differing(reads, {name: value for name, value in now.items() if name in reads}))
            if changes or not all(_has(root / name, expected) for name, expected in made[stage]["inputs"].items()):
                continue
            if not complete(root / stage):
                adopt_stage(root / stage, other / stage)
                taken.append(stage)
            same += _has(root / stage, digest)
        if not same:
            if not made:
                reason = "it has no stages, or an older version made them"
            elif refused:
                reason = f"the configs differ in {', '.join(sorted(refused))}"
            else:
                reason = "the stages in this run were made from other stages or files"
            raise RunDirectoryError(f"--reuse={other}: no stage can be reused: {reason}")
    return taken


def _complete_stages(root: Path, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The stage.json of each complete stage of these seeds, by its path from `root`; none of older versions."""
    paths = (path.parent for seed in seeds for path in root.glob(f"seed{seed}/**/stage.json"))
    stages = {str(path.relative_to(root)): read_manifest(path) for path in paths}
    return {
        stage: manifest
        for stage, manifest in stages.items()
        if "digest" in manifest and not any(part.startswith(".") for part in Path(stage).parts)
    }


def _has(path: Path, digest: str) -> bool:
    return complete(path) and digest_of(path) == digest

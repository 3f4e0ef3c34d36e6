"""Stages taken from other runs: a sweep over PPO's settings needs no second SFT model, samples or first reranker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rerankjax.run.reads import differing, flatten
from rerankjax.run.rundir import RunDirectoryError, adopt_stage, complete, digest_of, read_manifest


def reuse(root: Path, others: Sequence[Path], config: Any, seeds: Sequence[int]) -> list[str]:
    """Puts into the run at `root` what it lacks and one of `others` made from the same: the first that has it.

    A stage is the same where the fields that it read have this config's values, and the stages that it read are those
    that `root` has. Only those of `seeds` are taken. Returns the stages taken, by their paths from `root`. Files are
    hard links where the file system has them.

    Raises:
        RunDirectoryError: one of `others` holds no run, or nothing that could be taken.
    """
    now, taken = flatten(config), []
    for other in others:
        if not (other / "config.json").is_file():
            raise RunDirectoryError(f"--reuse={other}: no run is there (no config.json); give a run's --workdir")
        refused: dict[str, tuple[str, str]] = {}
        same = 0
        found = (path for seed in seeds for path in other.glob(f"seed{seed}/**/stage.json"))
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            stage = path.parent.relative_to(other)
            manifest = read_manifest(path.parent)
            if any(part.startswith(".") for part in stage.parts) or "digest" not in manifest:
                continue
            here = {name: value for name, value in now.items() if name in manifest["reads"]}
            refused |= (changes := differing(manifest["reads"], here))
            inputs = manifest["inputs"].items()
            if changes or not all(complete(root / i) and digest_of(root / i) == digest for i, digest in inputs):
                continue
            same += 1
            if not complete(root / stage):
                adopt_stage(root / stage, path.parent)
                taken.append(str(stage))
        if not same:
            fields = ", ".join(sorted(refused)) or "the layout of an older version"
            raise RunDirectoryError(f"--reuse={other}: no stage is the same, as the configs differ in {fields}")
    return taken

"""The run directory: stages that are there as a whole or not at all, under one config and one process at a time.

workdir/config.json        the resolved config
workdir/seed0/sft/         a complete stage; seed0/.sft.partial is one at work or killed
workdir/seed0/sft/stage.json

A workdir in a bucket is mirrored: see `bucket`. Everything here takes and gives local paths all the same.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rerankjax.problems.jsonl import write_text
from rerankjax.run import bucket
from rerankjax.run.bucket import RunDirectoryError, bucket_of, durable, is_bucket
from rerankjax.run.hosts import agree, is_first, wait_for_all

# Of a config: how a run is computed, not what it computes.
FREE = ("mesh.", "checkpoints.", "sandbox.workers")

__all__ = [
    "RunDirectoryError",
    "adopt_stage",
    "complete",
    "differing",
    "durable",
    "open_run",
    "recovery_of",
    "saved_config",
    "stage_seconds",
    "write_stage",
]


@contextmanager
def open_run(workdir: Path | str, config: Mapping[str, Any], primary: bool = True) -> Iterator[Path]:
    """Holds the run directory for this process, so that its stages all come from `config`; yields its path.

    workdir: a directory, or a bucket's address (a str): then the path is of a local mirror.
    config: nested mappings of JSON values, resolved. The first start saves it as config.json. Sections of `FREE` may
        change from start to start.
    primary: of several processes that make up one run, whether this one holds it; just one does.
    Raises RunDirectoryError if another process holds it, or if it was started with another config: then the message
    shows the difference. The kernel lets go when the process ends, by SIGKILL too; a bucket's lock goes stale.
    """
    if is_bucket(workdir):
        with bucket.open_mirror(str(workdir), primary) as root:
            _settle_config(root, config, str(workdir), primary)
            yield root
        return
    root = Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "a") as lock:
        try:
            # lockf, not flock: a forked sandbox worker that outlives this process must not go on holding the run.
            if primary:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunDirectoryError(
                f"{root}: another process is at work on this run; wait for it or give another --workdir."
            ) from error
        _settle_config(root, config, str(root), primary)
        yield root


def _settle_config(root: Path, config: Mapping[str, Any], name: str, primary: bool) -> None:
    path = root / "config.json"
    new = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if not path.exists():
        if primary:
            write_text(path, new)
            _sync(root)
            bucket.put_file(path)
        return
    changes = [
        f"  {field}: {was} -> {now}"
        for field, (was, now) in differing(root, config).items()
        if not field.startswith(FREE)
    ]
    if changes:
        raise RunDirectoryError(
            f"{name} was started with another config (field: saved -> given):\n"
            + "\n".join(changes)
            + f"\nGive another --workdir, or remove {name} to start it anew."
        )


def saved_config(root: Path) -> dict[str, str]:
    """The config that the run at `root` was started with: {"ppo.kl_coef": "0.1", ...}."""
    return _flat(json.loads((root / "config.json").read_text(encoding="utf-8")))


def differing(root: Path, config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The fields, sorted, in which the run at `root` has another config: what is saved, what `config` says."""
    was, now = saved_config(root), _flat(config)
    both = {name: (was.get(name, "(absent)"), now.get(name, "(absent)")) for name in sorted(was.keys() | now.keys())}
    return {name: (saved, given) for name, (saved, given) in both.items() if saved != given}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Every leaf of a config by its dotted name, as JSON text."""
    if not isinstance(value, Mapping) or (not value and name):
        return {name: json.dumps(value)}
    return {k: v for key, sub in value.items() for k, v in _flat(sub, f"{name}.{key}" if name else key).items()}


def complete(path: Path) -> bool:
    """Whether the stage at `path` was finished."""
    if (path / "stage.json").is_file():
        return True
    store = bucket_of(path)
    return store is not None and bucket.has_stage(store, path)


def recovery_of(path: Path) -> Path:
    """Where the checkpoints are from which the stage at `path`, if it is training and is cut, goes on."""
    return path.with_name(f".{path.name}.recovery")


def write_stage(path: Path, fill: Callable[[Path], object], everywhere: bool = False) -> Path:
    """The complete stage at `path`: as it stands, or else made by fill(directory) and put there in one step.

    `fill` writes its artifacts into the directory it is given and returns when they are all written (asynchronous
    checkpoints: wait for them). Killed at any moment, `path` is missing or complete; what a killed or failed attempt
    left is removed before the next. stage.json gets the seconds that `fill` took. In a bucket's mirror a stage that the
    bucket has is downloaded, and one that was made is uploaded.

    Of several processes the first calls `fill`, with `everywhere` all of them; the stage is complete for all or none.
    """
    store = bucket_of(path)
    if agree(complete(path)):
        if store is not None and not (path / "stage.json").is_file():
            _download(store, path)
        return path
    if path.exists():
        raise FileExistsError(f"{path} is there but is no complete stage (no stage.json); remove it and start again.")
    partial = _partial(path)
    if is_first() or store is not None:  # a mirror is a process's own
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if store is not None:
            bucket.clear(store, path)
    wait_for_all(f"{path.name} begins")
    start = time.monotonic()
    if everywhere or is_first():
        fill(partial)
    wait_for_all(f"{path.name} is filled")
    if is_first():
        write_text(partial / "stage.json", json.dumps({"seconds": round(time.monotonic() - start, 3)}) + "\n")
        if store is not None:
            bucket.put_stage(store, path, partial)
        _complete(partial, path)
        shutil.rmtree(recovery_of(path), ignore_errors=True)
        if store is not None:
            bucket.clear(store, recovery_of(path))
    wait_for_all(f"{path.name} is complete")
    if store is not None and not is_first():
        _download(store, path)
    return path


def adopt_stage(path: Path, made: Path) -> None:
    """The complete stage `made`, another run's, as the stage at `path` too; nobody else may be at work on that."""
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(made, partial, copy_function=_link)
    store = bucket_of(path)
    if store is not None:
        bucket.put_stage(store, path, partial)
    _complete(partial, path)


def _link(file: str, name: str) -> None:
    try:
        os.link(file, name)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(file, name)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _download(store: bucket.Bucket, path: Path) -> None:
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    bucket.get_stage(store, path, partial)
    _complete(partial, path)


def _complete(partial: Path, path: Path) -> None:
    # On disk before it has its name: a machine that stops must not leave a complete-looking stage with empty files.
    for directory, _, names in os.walk(partial):
        for name in names:
            _sync(Path(directory, name))
        _sync(Path(directory))
    os.rename(partial, path)
    _sync(path.parent)


def stage_seconds(path: Path) -> float:
    """How many seconds the attempt that completed the stage took."""
    return float(json.loads((path / "stage.json").read_text(encoding="utf-8"))["seconds"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

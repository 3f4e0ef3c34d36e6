"""The run directory: each stage is complete or absent, and records what it was made from.

workdir/config.json        the config of the last start
workdir/seed0/sft/         a complete stage; seed0/.sft.partial is one in progress or killed
workdir/seed0/sft/stage.json

stage.json lists the config fields and the stages that the stage read, and a digest of both with the digests of those
stages. These decide whether a run of another config may use the stage (see `reuse`).

A workdir in a bucket is mirrored: see `bucket`. All functions here take and return local paths in both cases.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rerankjax.problems.jsonl import write_text
from rerankjax.run import bucket, memory
from rerankjax.run.bucket import RunDirectoryError, bucket_of, durable_path, is_bucket
from rerankjax.run.hosts import broadcast_from_first, is_first, wait_for_all
from rerankjax.run.reads import differing, flatten, record

Config = TypeVar("Config")

__all__ = [
    "RunDirectoryError",
    "adopt_stage",
    "complete",
    "digest_of",
    "durable_path",
    "open_run",
    "read_manifest",
    "recovery_of",
    "saved_config",
    "stage_cost",
    "stage_seconds",
    "write_stage",
]


@contextmanager
def open_run(workdir: Path | str, config: Any, primary: bool = True) -> Iterator[Path]:
    """Holds the run directory for this process and yields its path.

    workdir: a directory, or a bucket's address (a str): then the path is that of a local mirror.
    config: a frozen dataclass. Complete stages must have been made from the same values of the fields that they read.
    primary: whether this process holds the run; of several processes of one run exactly one does.
    Raises RunDirectoryError if another process holds the run, or if a stage was made from other values (the message
    shows the difference) or by an older version. The kernel releases the lock when the process ends, even by SIGKILL;
    a bucket's lock goes stale.
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
            # lockf, not flock: a forked sandbox worker that outlives this process must not keep holding the run.
            if primary:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunDirectoryError(
                f"{root}: another process is working on this run; wait until it ends, or give another --workdir."
            ) from error
        _settle_config(root, config, str(root), primary)
        yield root


def _settle_config(root: Path, config: Any, name: str, primary: bool) -> None:
    now = flatten(config)
    changes: dict[str, tuple[str, str]] = {}
    for stage, manifest in _manifests(root):
        _check_layout(manifest, f"{name}/{stage}")
        # `reads` has the fields of one stage: other fields of the config are no difference.
        changes |= {
            field: pair for field, pair in differing(manifest["reads"], now).items() if field in manifest["reads"]
        }
    if changes:
        raise RunDirectoryError(
            f"{name} has stages that were made with another config (field: old -> new):\n"
            + "\n".join(f"  {field}: {was} -> {given}" for field, (was, given) in sorted(changes.items()))
            + f"\nGive another --workdir, with --reuse={name} to reuse the unchanged stages; or remove {name}."
        )
    if primary:
        write_text(root / "config.json", json.dumps(now, indent=2) + "\n")
        _sync(root)
        bucket.put_file(root / "config.json")


def _manifests(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The complete stages of the run by their paths from its root, with the content of their stage.json."""
    store = bucket_of(root)
    if store is not None:
        yield from bucket.manifests(store)
        return
    for path in sorted(root.glob("*/**/stage.json")):
        stage = path.parent.relative_to(root)
        if not any(part.startswith(".") for part in stage.parts):
            yield str(stage), read_manifest(path.parent)


def read_manifest(path: Path) -> dict[str, Any]:
    """The stage.json of the complete stage at `path`. A stage that only the bucket has is not downloaded."""
    store = bucket_of(path)
    if store is not None and not (path / "stage.json").is_file():
        return bucket.read_manifest(store, path) or {}
    manifest: dict[str, Any] = json.loads((path / "stage.json").read_text(encoding="utf-8"))
    return manifest


def _check_layout(manifest: Mapping[str, Any], where: str) -> None:
    if "digest" not in manifest:
        raise RunDirectoryError(
            f"{where} was made by an older version of rerankjax, which did not record what a stage is made from: give "
            "another --workdir."
        )


def saved_config(root: Path) -> dict[str, Any]:
    """The flat config that the run at `root` was last started with: {"ppo.kl_coef": 0.1, ...}."""
    config: dict[str, Any] = json.loads((root / "config.json").read_text(encoding="utf-8"))
    return config


def complete(path: Path) -> bool:
    """Whether the stage at `path` was finished."""
    if (path / "stage.json").is_file():
        return True
    store = bucket_of(path)
    return store is not None and bucket.has_stage(store, path)


def recovery_of(path: Path) -> Path:
    """The directory of the checkpoints from which the stage at `path` resumes interrupted training."""
    return path.with_name(f".{path.name}.recovery")


def digest_of(path: Path) -> str:
    """The digest of the complete stage at `path`, which is the same for stages made from the same content."""
    return str(read_manifest(path)["digest"])


def write_stage(
    root: Path,
    name: str,
    config: Config,
    inputs: Sequence[str],
    fill: Callable[[Path, Config], object],
    *,
    facts: Mapping[str, str] | None = None,
    everywhere: bool = False,
) -> Path:
    """The complete stage `root / name`, existing or made by fill(directory, config) and put there in one step.

    `fill` reads the config through the view that it is given, which records the fields, and writes its artifacts into
    the directory; it returns when all of them are written (asynchronous checkpoints: wait for them). After a kill at
    any moment the stage is missing or complete; files of a killed or failed attempt are removed before the next. In a
    bucket's mirror a stage that the bucket has is downloaded, and a stage that was made is uploaded.

    inputs: the complete stages that the stage reads, by their names from `root`.
    facts: what else the stage depends on, such as the content of a file that the config names.
    everywhere: all processes call `fill`, otherwise only the first. The stage is complete for all or none.

    Raises:
        RunDirectoryError: the stage exists and was made from other fields, inputs or facts.
    """
    path, store = root / name, bucket_of(root)
    made_from = {stage: digest_of(root / stage) for stage in inputs}
    if broadcast_from_first(complete(path)):
        if store is not None and not (path / "stage.json").is_file():
            _download(store, path)
        _check_stage(path, config, made_from, facts or {})
        return path
    if path.exists():
        raise FileExistsError(f"{path} exists but is not a complete stage (no stage.json); remove it and start again.")
    partial = _partial(path)
    if is_first() or store is not None:  # each process has its own mirror
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if store is not None:
            bucket.clear(store, path)
    wait_for_all(f"{path.name} begins")
    start = time.monotonic()
    memory.limit_mappings()
    memory.forget_peak()
    view, reads = record(config)
    if everywhere or is_first():
        fill(partial, view)
    wait_for_all(f"{path.name} is filled")
    if is_first():
        content = {"reads": dict(sorted(reads.items())), "inputs": made_from, "facts": dict(facts or {})}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        took = {"seconds": round(time.monotonic() - start, 3), "peak_bytes": memory.peaks()}
        manifest = took | {"digest": digest} | content
        write_text(partial / "stage.json", json.dumps(manifest, indent=1) + "\n")
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


def _check_stage(path: Path, config: Any, inputs: Mapping[str, str], facts: Mapping[str, str]) -> None:
    manifest = read_manifest(path)
    _check_layout(manifest, str(path))
    now = flatten(config)
    pairs = {
        "": (manifest["reads"], {field: now[field] for field in manifest["reads"] if field in now}),
        "stage ": (manifest["inputs"], inputs),
        "content of ": (manifest["facts"], facts),
    }
    changes = [
        f"  {kind}{name}: {was} -> {given}"
        for kind, (before, after) in pairs.items()
        for name, (was, given) in differing(before, after).items()
    ]
    if changes:
        raise RunDirectoryError(
            f"{path} was made from other fields, stages or files (old -> new):\n"
            + "\n".join(changes)
            + f"\nGive another --workdir, or remove {path}."
        )


def adopt_stage(path: Path, made: Path) -> None:
    """Puts the complete stage `made` of another run at `path` too; no other process may work on the stage at `path`."""
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
    # Synced before the rename: a machine that stops must not leave a complete-looking stage with empty files.
    for directory, _, names in os.walk(partial):
        for name in names:
            _sync(Path(directory, name))
        _sync(Path(directory))
    os.rename(partial, path)
    _sync(path.parent)


def stage_seconds(path: Path) -> float:
    """How many seconds the attempt that completed the stage took."""
    return stage_cost(path)[0]


def stage_cost(path: Path) -> tuple[float, int]:
    """`stage_seconds`, and the peak memory in bytes: an accelerator's if there is one, otherwise the process's."""
    manifest = json.loads((path / "stage.json").read_text(encoding="utf-8"))
    peaks: dict[str, int] = manifest.get("peak_bytes", {})
    return float(manifest["seconds"]), peaks.get("device", peaks.get("host", 0))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A run in a bucket (gs://, s3://, az://, file:///): written in a local mirror, kept as objects.

An object store writes and removes whole objects; it has no directories, renames or locks. So a stage fills a directory
of the mirror, whose files are then uploaded, stage.json last. If that object exists, the stage is complete and has the
files that stage.json lists. Otherwise the stage's objects are from a killed attempt, and are removed before the next.
Orbax writes its checkpoints to `durable_path`: into the bucket itself, below the stage that they belong to, from all
hosts, and before stage.json.

The lock is an object that only one process can create (the store must offer exclusive creation: Cloud Storage does).
Its owner changes its content every `BEAT_SECONDS`. A process that sees no change for `STALE_SECONDS` considers the
owner dead and replaces the lock. No clocks are compared. An owner that lives, but was suspended or disconnected for so
long, notices the new lock before it completes another stage, and stops. Until then two processes may work at once, but
both compute the same from one config, and only one continues.
"""

import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

SCHEMES = ("gs://", "s3://", "az://", "file:///")
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
MARK = ".bucket.json"  # in a mirror's root: names the bucket


class RunDirectoryError(Exception):
    """The run directory cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Bucket:
    """Where a run's objects are, and this process's name in the lock. Only the primary process locks and writes."""

    url: str  # without a slash at the end
    mirror: str
    owner: str
    primary: bool

    @property
    def files(self) -> fsspec.AbstractFileSystem:
        # Other machines write here too: listings are not cached.
        local = {"auto_mkdir": True} if self.url.startswith("file:") else {}
        files, _ = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **local)
        return files

    def place(self, path: Path) -> str:
        """The URL of `path`, which is in the mirror; a partial stage has the URL of the complete one."""
        parts = (re.sub(r"^\.(.+)\.partial$", r"\1", part) for part in path.absolute().relative_to(self.mirror).parts)
        return "/".join((self.url, *parts))


def is_bucket(workdir: Path | str) -> bool:
    return "://" in str(workdir)


def bucket_of(path: Path) -> Bucket | None:
    """The bucket that `path` is mirrored from, or None if the run is in a local directory."""
    for parent in (path.absolute(), *path.absolute().parents):
        if (parent / MARK).is_file():
            return Bucket(**json.loads((parent / MARK).read_text(encoding="utf-8")))
    return None


def durable_path(path: Path) -> Path | epath.Path:
    """`path` as a place that outlives this machine and that all hosts see: in the bucket, otherwise `path` itself.

    For Orbax and XLA's cache, which write to buckets by themselves. A path in a bucket is not a local file: it has only
    the operations of etils' paths.
    """
    bucket = bucket_of(path)
    if bucket is None:
        return path
    url = bucket.place(path)
    return Path(url.removeprefix("file://")) if url.startswith("file:") else epath.Path(url)


@contextmanager
def open_mirror(url: str, primary: bool) -> Iterator[Path]:
    """Yields a new local directory that mirrors the run at `url`; the primary process holds the run meanwhile.

    At the end, unless an exception is raised, the primary process uploads the files directly in the directory.
    Raises RunDirectoryError as `open_run` does, or if `url` cannot be used.
    """
    if not url.startswith(SCHEMES):
        raise RunDirectoryError(f"--workdir={url}: a bucket's address starts with {', '.join(SCHEMES)}.")
    # Resolved: paths below it are taken relative to it.
    mirror = Path(tempfile.mkdtemp(prefix="rerankjax-")).resolve()
    owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}"
    bucket = Bucket(url.rstrip("/"), str(mirror), owner, primary)
    try:
        _check(bucket)
        (mirror / MARK).write_text(json.dumps(asdict(bucket)), encoding="utf-8")
        config = f"{bucket.url}/config.json"
        with _held(bucket) if primary else nullcontext():
            if bucket.files.exists(config):
                bucket.files.get_file(config, str(mirror / "config.json"))
            yield mirror
            if primary:
                _check_owner(bucket)
                for path in sorted(mirror.iterdir()):
                    if path.is_file() and not path.name.startswith("."):
                        bucket.files.put_file(str(path), bucket.place(path))
    finally:
        shutil.rmtree(mirror, ignore_errors=True)


def put_file(path: Path) -> None:
    """Uploads one file of a mirror now, in one step; does nothing if `path` is not in a mirror."""
    bucket = bucket_of(path)
    if bucket is not None and bucket.primary:
        bucket.files.put_file(str(path), bucket.place(path))


def manifests(bucket: Bucket) -> Iterator[tuple[str, dict[str, Any]]]:
    """The complete stages of the bucket by their paths from the run's root, with the content of their stage.json."""
    base = str(bucket.files._strip_protocol(bucket.url)).rstrip("/")
    for path in sorted(bucket.files.glob(f"{base}/*/**/stage.json")):
        stage = str(path).removeprefix(f"{base}/").removesuffix("/stage.json")
        manifest = read_manifest(bucket, Path(bucket.mirror, stage))
        if manifest is not None:
            yield stage, manifest


def has_stage(bucket: Bucket, path: Path) -> bool:
    """Whether the stage that belongs at `path` of the mirror is complete in the bucket."""
    return read_manifest(bucket, path) is not None


def get_stage(bucket: Bucket, path: Path, directory: Path) -> None:
    """Downloads the complete stage that belongs at `path` into `directory`, without Orbax's checkpoints.

    Raises RunDirectoryError if one of its files is missing.
    """
    manifest = read_manifest(bucket, path) or {}
    for name in manifest["files"]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            bucket.files.get_file(f"{bucket.place(path)}/{name}", str(directory / name))
        except FileNotFoundError as error:
            where = bucket.place(path)
            raise RunDirectoryError(f"{where}: {name} is missing; remove {where} to make the stage again.") from error
    (directory / "stage.json").write_text(json.dumps(manifest) + "\n", encoding="utf-8")


def clear(bucket: Bucket, path: Path) -> None:
    """Removes the objects of `path` from the bucket: those of a killed attempt at a stage, or its checkpoints."""
    if bucket.primary and bucket.files.exists(bucket.place(path)):
        _check_owner(bucket)
        bucket.files.rm(bucket.place(path), recursive=True)


def put_stage(bucket: Bucket, path: Path, directory: Path) -> None:
    """Uploads `directory`, which holds a stage.json, as the stage that belongs at `path`; the last object completes the
    stage. Processes other than the primary do nothing.

    Raises RunDirectoryError if another process has taken the run over.
    """
    if not bucket.primary:
        return
    names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    names.remove("stage.json")
    for name in names:
        bucket.files.put_file(str(directory / name), f"{bucket.place(path)}/{name}")
    manifest = json.loads((directory / "stage.json").read_text(encoding="utf-8")) | {"files": names}
    _check_owner(bucket)
    bucket.files.pipe_file(f"{bucket.place(path)}/stage.json", json.dumps(manifest).encode())


def read_manifest(bucket: Bucket, path: Path) -> dict[str, Any] | None:
    """The content of the stage.json of the stage that belongs at `path`, None if the stage is not complete."""
    try:
        manifest = json.loads(bucket.files.cat_file(f"{bucket.place(path)}/stage.json"))
    except (FileNotFoundError, json.JSONDecodeError):  # half a file: file:/// may have one, stores do not
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _check(bucket: Bucket) -> None:
    """Raises RunDirectoryError unless the bucket can be read."""
    try:
        bucket.files.exists(f"{bucket.url}/config.json")
    except ImportError as error:
        raise RunDirectoryError(
            f"--workdir={bucket.url}: {error}. For gs://, install rerankjax[tpu] or gcsfs; for other stores, install "
            "the package that the error names."
        ) from error
    except Exception as error:  # each store has its own errors
        raise RunDirectoryError(
            f"--workdir={bucket.url} cannot be read: {type(error).__name__}: {error}. Check that the bucket exists "
            "and that this machine's account can access it."
        ) from error


def _lock(bucket: Bucket) -> str:
    return f"{bucket.url}/lock"


def _read_lock(bucket: Bucket) -> bytes | None:
    try:
        return bytes(bucket.files.cat_file(_lock(bucket)))
    except FileNotFoundError:
        return None


def _lock_text(bucket: Bucket) -> bytes:
    return json.dumps({"owner": bucket.owner, "beat": time.time_ns()}).encode()


def _is_owner(bucket: Bucket) -> bool:
    lock = _read_lock(bucket)
    return lock is not None and bucket.owner.encode() in lock


def _check_owner(bucket: Bucket) -> None:
    if not _is_owner(bucket):
        raise RunDirectoryError(
            f"{bucket.url}: another process has taken over this run, because this process did not renew its lock for "
            f"{STALE_SECONDS:.0f} seconds. The other process continues the run; this process stops."
        )


@contextmanager
def _held(bucket: Bucket) -> Iterator[None]:
    _acquire(bucket)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(bucket, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with suppress(Exception):  # the error that ends the run must not be hidden; a lock that stays goes stale
            if _is_owner(bucket):
                bucket.files.rm_file(_lock(bucket))


def _acquire(bucket: Bucket) -> None:
    while True:
        try:
            if bucket.url.startswith("file:"):
                bucket.files.makedirs(bucket.url, exist_ok=True)
            with bucket.files.open(_lock(bucket), "xb") as lock:
                lock.write(_lock_text(bucket))
            return
        except FileExistsError:
            if _is_owner(bucket):
                return  # our lock: its request was sent twice
        first, start = _read_lock(bucket), time.monotonic()
        while (current := _read_lock(bucket)) == first and first is not None:
            if time.monotonic() - start > STALE_SECONDS:
                print(f"{bucket.url}: taken over from a process that died ({_owner(first)})", flush=True)
                with suppress(FileNotFoundError):
                    bucket.files.rm_file(_lock(bucket))
                break
            time.sleep(min(1.0, STALE_SECONDS / 10))
        else:
            if current is not None:
                raise RunDirectoryError(
                    f"{bucket.url}: another process is working on this run ({_owner(current)}); wait until it ends, or "
                    "give another --workdir."
                )


def _owner(lock: bytes) -> str:
    try:
        return str(json.loads(lock)["owner"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _beat(bucket: Bucket, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(Exception):  # the connection may fail for a moment: the next beat will do
            if not _is_owner(bucket):
                return  # taken over: the next stage raises the error
            bucket.files.pipe_file(_lock(bucket), _lock_text(bucket))

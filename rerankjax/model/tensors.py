"""The safetensors files of a Hugging Face folder: finding their tensors, reading parts of them, writing new files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ROWS = 64  # read at a time: the transpose of so few stays in the processor's cache


@runtime_checkable
class StoredTensor(Protocol):
    """A tensor of a checkpoint in any format, by the name that its file gives it. `dtype`: of the arrays read."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    def read_rows(self, index: Sequence[slice]) -> Iterator[tuple[slice, np.ndarray]]:
        """The part at `index`, a few rows at a time, each with the rows' place in that part."""


class Tensor(NamedTuple):
    """Where a safetensors file keeps a tensor. `dtype` is safetensors' name: "BF16", "F32"."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    def read_rows(self, index: Sequence[slice]) -> Iterator[tuple[slice, np.ndarray]]:
        begin, end, _ = index[0].indices(self.shape[0])
        # Opened for one tensor only: pages read from a mapped file count as this process's memory until it is closed.
        with safe_open(self.file, framework="np") as opened:
            part = opened.get_slice(self.name)
            for row in range(begin, end, ROWS):
                stop = min(row + ROWS, end)
                yield slice(row - begin, stop - begin), part[(slice(row, stop), *index[1:])]


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor by its name, from the headers of the single file or of the files that the index names.

    Raises:
        FileNotFoundError: there are no such files, or one is missing.
        ValueError: the index names a tensor that its file does not hold.
    """
    file_of: Mapping[str, str] = {}
    if (folder / INDEX).is_file():
        file_of = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    elif not (folder / SINGLE).is_file():
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}: other formats are not read; load the model with transformers "
            "and write it with save_pretrained"
        )
    tensors = {}
    for file in [folder / name for name in sorted(set(file_of.values())) or [SINGLE]]:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist, but {INDEX} names it: complete the download")
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (a file, not a dict)
                part = opened.get_slice(name)
                tensors[name] = Tensor(name, file, tuple(part.get_shape()), part.get_dtype())
    for name, file_name in file_of.items():
        if name not in tensors:
            raise ValueError(f"{folder / file_name} lacks {name}, which {INDEX} lists there: complete the download")
    return tensors


def same(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers."""
    if a.shape != b.shape:
        return False
    everything = [slice(None)] * len(a.shape)
    pairs = zip(a.read_rows(everything), b.read_rows(everything), strict=True)
    return all(np.array_equal(x, y) for (_, x), (_, y) in pairs)


def write_tensors(folder: Path, tensors: Mapping[str, tuple[int, Callable[[], np.ndarray]]], max_bytes: int) -> None:
    """Writes tensors, given by their size in bytes and a function that fetches them, into files of `max_bytes` at most.

    One file is held in memory at a time; a tensor larger than `max_bytes` gets one to itself.
    """
    files: list[list[str]] = [[]]
    room = max_bytes
    for name, (size, _) in tensors.items():
        if size > room and files[-1]:
            files.append([])
            room = max_bytes
        files[-1].append(name)
        room -= size
    count = len(files)
    file_names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file_name, names in zip(file_names, files, strict=True):
        arrays = {name: np.ascontiguousarray(tensors[name][1]()) for name in names}
        save_file(arrays, folder / file_name, metadata={"format": "pt"})
    if count > 1:
        weight_map = {name: file_name for file_name, names in zip(file_names, files, strict=True) for name in names}
        metadata = {"total_size": sum(size for size, _ in tensors.values())}
        (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n")

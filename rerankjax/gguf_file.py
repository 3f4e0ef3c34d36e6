"""GGUF files, llama.cpp's format: the metadata, and the tensors' numbers, dequantised a few rows at a time.

The `gguf` package reads the header, and dequantises in numpy. `model.gguf` makes a model of the fields and
`prompts.gguf_tokenizer` a tokenizer.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize

ROWS = 64  # read at a time


class GGUFTensor(NamedTuple):
    """Where a GGUF file keeps a tensor, and how; `read_rows` gives float32, whatever the quantisation.

    `heads`: llama.cpp rotates neighbouring dimensions where Hugging Face's models rotate halves, so it stores the rows
    of a Llama's query and key projections in another order in each of so many heads; 0 where it does not.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    quantisation: GGMLQuantizationType
    offset: int  # bytes
    heads: int = 0

    @property
    def dtype(self) -> str:
        return "F32"

    def read_rows(self, index: Sequence[slice]) -> Iterator[tuple[slice, np.ndarray]]:
        """The part at `index`, a few rows at a time, each with the rows' place in that part."""
        rows = np.arange(self.shape[0])
        if self.heads:
            rows = rows.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)  # where the file has each
        rows = rows[index[0]]
        columns = index[1] if len(self.shape) > 1 else slice(1)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            first, last = int(np.min(part)), int(np.max(part))
            values = self._dequantise(first, last + 1, columns)[part - first]
            yield slice(start, start + len(part)), values if len(self.shape) > 1 else values[:, 0]

    def _dequantise(self, first: int, stop: int, columns: slice) -> np.ndarray:
        """`columns` of the rows from `first` to `stop`; other blocks are not dequantised. A vector is one column."""
        width = self.shape[1] if len(self.shape) > 1 else 1
        block, block_bytes = GGML_QUANT_SIZES[self.quantisation]
        begin, end, _ = columns.indices(width)
        row_bytes = width // block * block_bytes
        shape = stop - first, row_bytes
        data = np.fromfile(self.file, np.uint8, math.prod(shape), offset=self.offset + first * row_bytes).reshape(shape)
        blocks = slice(begin // block, -(-end // block))
        data = np.ascontiguousarray(data[:, blocks.start * block_bytes : blocks.stop * block_bytes])
        return dequantize(data, self.quantisation)[:, begin - blocks.start * block : end - blocks.start * block]


class GGUFFile(NamedTuple):
    """A GGUF file's header: its metadata, and its tensors by their names there."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def get(self, field: str) -> Any:
        """A field that must be there. Raises ValueError where it is not."""
        if field not in self.metadata:
            raise ValueError(f"{self.file} has no {field} in its metadata: convert the model again with llama.cpp")
        return self.metadata[field]

    def tensor(self, name: str) -> GGUFTensor:
        """A tensor that must be there. Raises ValueError where it is not."""
        if name not in self.tensors:
            raise ValueError(f"{self.file} has no tensor {name}: convert the model again with llama.cpp")
        return self.tensors[name]


def read_gguf(file: Path) -> GGUFFile:
    """The header of a GGUF file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not in this format, is cut off, one of several, or has a quantisation that is not read.
    """
    status = file.stat()
    return _read(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # the weights and the tokenizer come from the same file, whose vocabulary takes seconds
def _read(file: Path, changed: int, size: int) -> GGUFFile:
    try:
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{file} is not a complete GGUF file ({error}): download the file again; "
            "if the file is complete, update the package gguf"
        ) from error
    if reader.byte_order == "S":
        raise ValueError(f"{file} is big-endian, which is not supported: convert it with gguf's gguf-convert-endian")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{file} is one part of a model with split.count = {metadata['split.count']}: join the parts with "
            "llama-gguf-split --merge"
        )
    readable: dict[GGMLQuantizationType, bool] = {}
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if not readable.setdefault(kind, _is_readable(kind)):
            raise ValueError(
                f"{file}: {tensor.name} is {kind.name}, which the package gguf does not dequantise: convert the model "
                "to another type, such as Q8_0"
            )
        shape = tuple(int(n) for n in reversed(tensor.shape))
        tensors[tensor.name] = GGUFTensor(tensor.name, file, shape, kind, tensor.data_offset)
    return GGUFFile(file, metadata, tensors)


def _is_readable(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True

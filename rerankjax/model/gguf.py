"""GGUF files, llama.cpp's format: the config and the tensors of a Llama, Qwen2 or Qwen3, under Hugging Face's names.

The `gguf` package reads the file's header, and dequantises in numpy. Tensors are read a few rows at a time.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, dequantize

from rerankjax.model.config import MODEL_TYPES, ModelConfig, RopeScaling
from rerankjax.model.decoder import scale_frequency
from rerankjax.model.tensors import ROWS

EMBEDDING, ROPE_FREQS = "token_embd.weight", "rope_freqs.weight"
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
_STORED = {theirs: stored for stored, theirs in (NAMES | LAYER_NAMES).items()}
FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
# Metadata that changes what a model computes: the values supported, all of which mean "without it".
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "logit_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
}


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
            first = part.min()
            values = self._dequantise(int(first), int(part.max()) + 1, columns)[part - first]
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


class GGUF(NamedTuple):
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


def read_header(file: Path) -> GGUF:
    """The header of a GGUF file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not in this format, is cut off, one of several, or has a quantisation that is not read.
    """
    status = file.stat()
    return _read_header(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # the weights and the tokenizer come from the same file, whose vocabulary takes seconds
def _read_header(file: Path, changed: int, size: int) -> GGUF:
    try:
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{file} is no complete GGUF file ({error}): download it again; where it is whole, update the package gguf"
        ) from error
    if reader.byte_order == "S":
        raise ValueError(f"{file} is big-endian, which is not supported: convert it with gguf's gguf-convert-endian")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{file} is one of split.count = {metadata['split.count']} files: join them with llama-gguf-split --merge"
        )
    readable: dict[GGMLQuantizationType, bool] = {}
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if not readable.setdefault(kind, _is_readable(kind)):
            raise ValueError(
                f"{file}: {tensor.name} is {kind.name}, which the package gguf does not dequantise: convert the model "
                "to another type, Q8_0 say"
            )
        shape = tuple(int(n) for n in reversed(tensor.shape))
        tensors[tensor.name] = GGUFTensor(tensor.name, file, shape, kind, tensor.data_offset)
    return GGUF(file, metadata, tensors)


def _is_readable(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def read_config(header: GGUF) -> ModelConfig:
    """The model's config, from the metadata and from which tensors there are.

    Raises:
        ValueError: another architecture; a field is missing, or has a value that is not supported.
    """
    architecture = header.get("general.architecture")
    if architecture not in MODEL_TYPES:
        raise ValueError(
            f'{header.file}: general.architecture = "{architecture}" is not supported: use one of '
            f"{', '.join(MODEL_TYPES)}"
        )
    fields = {name: header.get(f"{architecture}.{field}") for name, field in FIELDS.items()}
    for name, value in fields.items():
        if isinstance(value, list):
            raise ValueError(f"{header.file}: {architecture}.{FIELDS[name]} differs by layer, which is not supported")
    optional = functools.partial(_optional, header, architecture)
    heads = fields["num_attention_heads"]
    head_dim = optional("attention.key_length", fields["hidden_size"] // heads)
    supported = SUPPORTED | {"attention.value_length": (head_dim,), "rope.dimension_count": (head_dim,)}
    for field, values in supported.items():
        if (value := optional(field, values[0])) not in values:
            raise ValueError(
                f"{header.file}: {architecture}.{field} = {value} is not supported, only "
                f"{' or '.join(map(str, values))}: give another model"
            )
    window, context = optional("attention.sliding_window", 0), fields["max_position_embeddings"]
    if 0 < window < context:
        raise ValueError(
            f"{header.file}: {architecture}.attention.sliding_window = {window} is not supported: every layer attends "
            f"to the whole context of {context} tokens; give another model"
        )
    theta = optional("rope.freq_base", 10_000.0)
    try:
        return ModelConfig(
            **fields,
            vocab_size=header.tensor(EMBEDDING).shape[0],
            num_key_value_heads=optional("attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_theta=theta,
            tie_word_embeddings="output.weight" not in header.tensors,
            model_type=architecture,
            attention_bias=architecture != "qwen2" and "blk.0.attn_q.bias" in header.tensors,
            rope_scaling=_rope_scaling(header, architecture, theta, head_dim),
        )
    except ValueError as error:
        raise ValueError(f"{header.file}: {error}") from error


def _optional(header: GGUF, architecture: str, field: str, default: Any) -> Any:
    return header.metadata.get(f"{architecture}.{field}", default)


def _rope_scaling(header: GGUF, architecture: str, theta: float, head_dim: int) -> RopeScaling:
    optional = functools.partial(_optional, header, architecture)
    old = optional("rope.scale_linear", 1.0)
    kind = optional("rope.scaling.type", "linear" if old != 1 else "none")
    if ROPE_FREQS not in header.tensors:
        return RopeScaling() if kind == "none" else RopeScaling(kind, optional("rope.scaling.factor", old))
    # Llama 3.1's file has what each frequency is divided by, and not what these divisors were made from.
    tensor = header.tensors[ROPE_FREQS]
    divisors = np.concatenate([values for _, values in tensor.read_rows([slice(None)])])
    scaling = RopeScaling("llama3", float(divisors.max()))  # the other fields are the same in all of its models
    frequency = theta ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    expected = frequency / scale_frequency(frequency, scaling)
    if kind != "none" or divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f'{ROPE_FREQS} with rope.scaling.type = "{kind}" is not supported: only the divisors that '
            f"{scaling} gives are; load the model from its safetensors"
        )
    return scaling


def find_tensors(header: GGUF, config: ModelConfig) -> dict[str, GGUFTensor]:
    """The model's tensors by Hugging Face's names; one that has none there keeps its own."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for name, tensor in header.tensors.items():
        if name == ROPE_FREQS:
            continue
        module = name.split(".")[-2] if "." in name else name
        permuted = config.model_type == "llama" and module in heads
        tensors[_renamed(name)] = tensor._replace(heads=heads[module]) if permuted else tensor
    return tensors


def _renamed(name: str) -> str:
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name)
    if layer:
        number, module, end = layer.groups()
        return f"model.layers.{number}.{LAYER_NAMES[module]}.{end}" if module in LAYER_NAMES else name
    module, _, end = name.rpartition(".")
    return f"{NAMES[module]}.{end}" if module in NAMES else name


def stored_name(name: str) -> str:
    """What a GGUF file calls the tensor `name` of Hugging Face's model."""
    module, _, end = name.rpartition(".")
    parts = module.split(".", 3)
    if module.startswith("model.layers."):
        return f"blk.{parts[2]}.{_STORED[parts[3]]}.{end}"
    return f"{_STORED[module]}.{end}" if module in _STORED else name

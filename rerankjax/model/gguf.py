"""A GGUF file's model: the config and the tensors of a Llama, Qwen2 or Qwen3, under Hugging Face's names."""

import functools
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from rerankjax.gguf_file import GGUFFile, GGUFTensor
from rerankjax.model.config import MODEL_TYPES, ModelConfig, RopeScaling
from rerankjax.model.decoder import scale_frequency

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


def read_config(header: GGUFFile) -> ModelConfig:
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


def _optional(header: GGUFFile, architecture: str, field: str, default: Any) -> Any:
    return header.metadata.get(f"{architecture}.{field}", default)


def _rope_scaling(header: GGUFFile, architecture: str, theta: float, head_dim: int) -> RopeScaling:
    optional = functools.partial(_optional, header, architecture)
    old = optional("rope.scale_linear", 1.0)
    kind = optional("rope.scaling.type", "linear" if old != 1 else "none")
    if ROPE_FREQS not in header.tensors:
        return RopeScaling() if kind == "none" else RopeScaling(kind, optional("rope.scaling.factor", old))
    # Llama 3.1's file has each frequency's divisor, but not the settings from which the divisors were computed.
    tensor = header.tensors[ROPE_FREQS]
    divisors = np.concatenate([values for _, values in tensor.read_rows([slice(None)])])
    scaling = RopeScaling("llama3", float(divisors.max()))  # the other fields are the same in all such models
    frequency = theta ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    expected = frequency / scale_frequency(frequency, scaling)
    if kind != "none" or divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ValueError(
            f'{ROPE_FREQS} with rope.scaling.type = "{kind}" is not supported: only "none" with '
            f"the divisors of {scaling} is; load the model from its safetensors"
        )
    return scaling


def find_tensors(header: GGUFFile, config: ModelConfig) -> dict[str, GGUFTensor]:
    """The model's tensors by Hugging Face's names; a tensor that has no such name keeps its own."""
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
    """The name in a GGUF file of the tensor `name` of Hugging Face's model."""
    module, _, end = name.rpartition(".")
    parts = module.split(".", 3)
    if module.startswith("model.layers."):
        return f"blk.{parts[2]}.{_STORED[parts[3]]}.{end}"
    return f"{_STORED[module]}.{end}" if module in _STORED else name

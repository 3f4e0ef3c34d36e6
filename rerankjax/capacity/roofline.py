"""Lower bounds of a decoder's FLOPs and bytes of memory traffic, and of the time that chips need for them.

The roofline (Williams et al. 2009): a program takes the longer of its FLOPs at the chip's peak and its bytes at the
memory's bandwidth. This is a lower bound, and shows which of the two limits; nothing here is measured.

FLOPs are those of matrix products, 2 m n k each; norms, rotations and softmaxes are not counted. Bytes are those that
no program avoids: parameters, the cache of keys and values, and in training what the backward pass needs, gradients
and the optimiser's state. Other activations are assumed to stay on the chip, and communication between chips to cost
nothing.
"""

import dataclasses

from rerankjax.model.config import ModelConfig
from rerankjax.model.lora import FULL, LoraConfig


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes read from and written to memory."""

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker states it: dense bfloat16 FLOPs, memory bandwidth and size (1 GB = 1e9 bytes)."""

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: float
    source: str


_NVIDIA, _CLOUD = "https://www.nvidia.com/en-us/data-center", "https://cloud.google.com/tpu/docs"
# NVIDIA's 1,979 TFLOPS are for sparse matrices: dense matrices get half.
CHIPS = {
    "h100": Chip("H100 SXM", 989.4e12, 3.35e12, 80e9, f"{_NVIDIA}/h100/"),
    "h200": Chip("H200 SXM", 989.4e12, 4.8e12, 141e9, f"{_NVIDIA}/h200/"),
    "v5e": Chip("TPU v5e", 197e12, 819e9, 16e9, f"{_CLOUD}/v5e"),
    "v5p": Chip("TPU v5p", 459e12, 2765e9, 95e9, f"{_CLOUD}/v5p"),
    "v6e": Chip("TPU v6e", 918e12, 1638e9, 32e9, f"{_CLOUD}/v6e"),
}


def seconds(cost: Cost, chip: Chip, chips: int = 1) -> float:
    """The least time in which `chips` chips do the work of `cost`, each an equal share."""
    return max(cost.flops / chip.flops_per_second, cost.bytes / chip.bytes_per_second) / chips


def _projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each of a layer's kernels."""
    D, F = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (D, query),
        "k_proj": (D, key),
        "v_proj": (D, key),
        "o_proj": (query, D),
        "gate_proj": (D, F),
        "up_proj": (D, F),
        "down_proj": (F, D),
    }


def _kernels(config: ModelConfig) -> int:
    return config.num_hidden_layers * sum(i * o for i, o in _projections(config).values())


def parameter_count(config: ModelConfig) -> int:
    """All parameters of the decoder, without the `hidden_size` parameters of a reranker's or a value head."""
    c = config
    projections = _projections(c)
    biased = [*(("q_proj", "k_proj", "v_proj") if c.qkv_bias else ()), *(("o_proj",) if c.attention_bias else ())]
    of_layer = 2 * c.hidden_size + sum(projections[name][1] for name in biased) + (2 * c.head_dim if c.qk_norm else 0)
    tables = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
    return _kernels(c) + c.num_hidden_layers * of_layer + c.hidden_size + tables


def adapter_count(config: ModelConfig, lora: LoraConfig) -> int:
    """The parameters that an adapter trains."""
    projections = _projections(config)
    return config.num_hidden_layers * lora.rank * sum(sum(projections[name]) for name in lora.targets)


def cache_bytes(config: ModelConfig, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes of the keys and values of `tokens` tokens, over all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * dtype_bytes


def forward_flops(config: ModelConfig, tokens: int, pairs: int, logits: int) -> int:
    """FLOPs of a forward pass.

    Args:
        tokens: over all rows.
        pairs: of a query and a key that it attends to, over all rows; see `causal_pairs`.
        logits: positions that are mapped to the vocabulary, over all rows.
    """
    c = config
    attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * pairs
    return 2 * _kernels(c) * tokens + attention + 2 * c.vocab_size * c.hidden_size * logits


def causal_pairs(length: int, prefix: int = 0) -> int:
    """Pairs of a query and a key in a row of `length` tokens behind `prefix` tokens that are in the cache."""
    return length * prefix + length * (length + 1) // 2


def prefill_cost(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    prefix: int = 0,
    prefixes: int | None = None,
    logits: int = 1,
    dtype_bytes: int = 2,
) -> Cost:
    """Reading `batch` rows of `length` tokens at once: prompts, or completions to be scored.

    Args:
        prefix: tokens before each row, whose keys and values are in the cache.
        prefixes: how many different prefixes the rows share; by default each row has its own.
        logits: positions of each row that are mapped to the vocabulary: 1 for a prompt, 0 for a reranker.
        dtype_bytes: of parameters and cache.
    """
    cached = (batch if prefixes is None else prefixes) * prefix
    flops = forward_flops(config, batch * length, batch * causal_pairs(length, prefix), batch * logits)
    read = _read_bytes(config, batch * length, logits > 0, dtype_bytes)
    return Cost(flops, read + cache_bytes(config, cached + batch * length, dtype_bytes))


def decode_cost(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    prefix: int = 0,
    prefixes: int | None = None,
    dtype_bytes: int = 2,
) -> Cost:
    """Drawing one more token for each of `batch` samples; the parameters are read once for all samples.

    Args:
        length: tokens of its own that each sample attends to, including the token that it is given.
        prefix: tokens of its prompt that each sample attends to as well.
        prefixes: how many different prompts there are, each read once for all its samples; by default one per sample.
        dtype_bytes: of parameters and cache.
    """
    cached = (batch if prefixes is None else prefixes) * prefix + batch * length
    flops = forward_flops(config, batch, batch * (length + prefix), batch)
    written = cache_bytes(config, batch, dtype_bytes)
    return Cost(
        flops, _read_bytes(config, batch, True, dtype_bytes) + cache_bytes(config, cached, dtype_bytes) + written
    )


def score_cost(
    config: ModelConfig, prompts: int, prompt_length: int, candidates: int, length: int, *, dtype_bytes: int = 2
) -> Cost:
    """A reranker's scores of `candidates` completions of each of `prompts` prompts; each prompt is read once."""
    reading = prefill_cost(config, prompts, prompt_length, logits=0, dtype_bytes=dtype_bytes)
    rows = prompts * candidates
    behind = prefill_cost(
        config, rows, length, prefix=prompt_length, prefixes=prompts, logits=0, dtype_bytes=dtype_bytes
    )
    return reading + behind


def sampling_seconds(
    config: ModelConfig,
    chip: Chip,
    prompts: int,
    prompt_length: int,
    samples: int,
    length: int,
    *,
    chips: int = 1,
    dtype_bytes: int = 2,
) -> float:
    """The least time to read `prompts` prompts once and draw `samples` completions of `length` tokens behind each.

    All completions are drawn in parallel. Reading a prompt gives the first token; each other token takes a step.
    """
    total = seconds(prefill_cost(config, prompts, prompt_length, dtype_bytes=dtype_bytes), chip, chips)
    for own in range(1, length):
        step = decode_cost(
            config, prompts * samples, own, prefix=prompt_length, prefixes=prompts, dtype_bytes=dtype_bytes
        )
        total += seconds(step, chip, chips)
    return total


def adam_cost(config: ModelConfig, lora: LoraConfig = FULL, state_bytes: int = 4) -> Cost:
    """An update of the trained parameters and both moments, each read and written; its few FLOPs are not counted."""
    return Cost(0, 2 * 3 * _trained(config, lora) * state_bytes)


def gradient_cost(
    config: ModelConfig,
    batch: int,
    length: int,
    *,
    lora: LoraConfig = FULL,
    logits: int | None = None,
    remat: bool | None = None,
    dtype_bytes: int = 2,
    state_bytes: int = 4,
) -> Cost:
    """Forward and backward over `batch` rows of `length` tokens, and adding to the gradients of other parts.

    With adapters the frozen kernels get no gradient, but the gradients of activations pass through the kernels.

    Args:
        lora: adapters over a frozen base, or all parameters.
        logits: positions of each row that are mapped to the vocabulary: all by default, 0 for a reranker.
        remat: whether layers are computed once more in the backward pass (by default if the config
            says "full"; "dots" computes no projections again, and is not counted). Model FLOPs
            utilisation counts only useful FLOPs: give False for it.
        dtype_bytes: of parameters in matrix products, and of activations.
        state_bytes: of trained parameters, their gradients and each of Adam's two moments, as stored.
    """
    c = config
    remat = c.remat == "full" if remat is None else remat
    tokens = batch * length
    mapped = batch * (length if logits is None else logits)
    pairs = batch * causal_pairs(length)
    layers, head = forward_flops(c, tokens, pairs, 0), forward_flops(c, 0, 0, mapped)
    attention = forward_flops(c, 0, pairs, 0)
    trained = _trained(c, lora)
    last = 2 * c.num_hidden_layers * c.intermediate_size * c.hidden_size * tokens  # a layer's last product
    if lora.rank:
        # Of the backward pass's two products per kernel, a frozen kernel needs no product for its own gradient.
        adapters = 2 * trained * tokens
        backward = layers + attention + head + 2 * adapters
        layers += adapters
        last += 2 * c.num_hidden_layers * lora.rank * c.hidden_size * tokens * ("down_proj" in lora.targets)
    else:
        backward = 2 * (layers + head)
    # A layer's output is not computed again: no gradient needs it.
    flops = layers + head + backward + (layers - last if remat else 0)

    parameters = parameter_count(c) * dtype_bytes * (3 if remat else 2)
    # Without remat every product's inputs and outputs are written and read; with remat only each layer's input.
    given = 2 * c.hidden_size + c.num_attention_heads * c.head_dim + c.intermediate_size
    of_token = c.hidden_size if remat else given + sum(outputs for _, outputs in _projections(c).values())
    kept = c.num_hidden_layers * tokens * of_token * dtype_bytes
    gradients = 2 * trained * state_bytes
    return Cost(flops, parameters + 2 * kept + gradients)


def _trained(config: ModelConfig, lora: LoraConfig) -> int:
    return adapter_count(config, lora) if lora.rank else parameter_count(config)


def _read_bytes(config: ModelConfig, tokens: int, logits: bool, dtype_bytes: int) -> int:
    """Bytes of the parameters read: the layers, a row of embeddings per token, and with `logits` the output table."""
    table = config.vocab_size * config.hidden_size
    tables = table if config.tie_word_embeddings else 2 * table
    return (parameter_count(config) - tables + table * logits + tokens * config.hidden_size) * dtype_bytes

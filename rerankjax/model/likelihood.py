"""Log-probabilities of completions under a decoder.

A row is a prompt padded on the left to P tokens, then a completion padded on the right to C, so L = P + C and every
completion starts at the same place: only the completion's C positions are mapped to the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states, packed_hidden_states, to_logits
from rerankjax.model.packing import Packed

BLOCK = 1 << 24  # logits held at a time, 64 MB in float32


class SequenceBatch(NamedTuple):
    """Prompts and completions as arrays. The mask is true at real tokens, and an end-of-text token is a real one."""

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]


def select_log_probs(logits: Float[Array, "B C V"], tokens: Int[Array, "B C"]) -> Float[Array, "B C"]:
    """log softmax(logits) at `tokens`, in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_log_probs(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B C D"],
    tokens: Int[Array, "B C"],
    temperature: float = 1.0,
) -> Float[Array, "B C"]:
    """log softmax(logits / temperature) at `tokens`, from the hidden states before them; float32, nats.

    No [B, C, V] array is held: logits are computed for as many positions at a time as fit into `BLOCK`, and recomputed
    for the gradient.
    """
    B, C = tokens.shape

    def block_log_probs(block: tuple[Array, Array]) -> Array:
        return select_log_probs(to_logits(config, params, block[0]) / temperature, block[1])

    width = max(1, BLOCK // (B * config.vocab_size))
    if width >= C:
        return block_log_probs((hidden, tokens))
    blocks = -(-C // width)

    def cut(a: Array) -> Array:
        a = jnp.pad(a, [(0, 0), (0, blocks * width - C)] + [(0, 0)] * (a.ndim - 2))
        return a.reshape(B, blocks, width, *a.shape[2:]).swapaxes(0, 1)

    log_probs = jax.lax.map(jax.checkpoint(block_log_probs), (cut(hidden), cut(tokens)))
    return log_probs.swapaxes(0, 1).reshape(B, -1)[:, :C]


def completion_log_probs(
    config: ModelConfig, params: Params, rows: SequenceBatch, prompt_length: int, temperature: float = 1.0
) -> tuple[Float[Array, "B C"], Float[Array, "B L D"]]:
    """Each completion token's log-probability at `temperature` (nats; padding holds 0), and the hidden states."""
    hidden = hidden_states(config, params, rows.tokens, rows.mask)
    before, tokens = hidden[:, prompt_length - 1 : -1], rows.tokens[:, prompt_length:]
    log_probs = token_log_probs(config, params, before, tokens, temperature)
    return jnp.where(rows.mask[:, prompt_length:], log_probs, 0.0), hidden


def packed_log_probs(
    config: ModelConfig, params: Params, packed: Packed, temperature: float = 1.0
) -> tuple[Float[Array, "B T"], Float[Array, "B L D"]]:
    """As `completion_log_probs`, for packed sequences."""
    hidden = packed_hidden_states(config, params, packed)
    tokens = jnp.take_along_axis(packed.tokens, packed.target_place, axis=1)
    log_probs = token_log_probs(config, params, take_places(hidden, packed.before), tokens, temperature)
    return jnp.where(packed.mask, log_probs, 0.0), hidden


def take_places(hidden: Float[Array, "B L D"], places: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The hidden states at `places` of their rows."""
    return jnp.take_along_axis(hidden, places[..., None], axis=1)


def tokens_of_completions(packed: Packed) -> Bool[Array, "B T N"]:
    """Which of a row's completion tokens belong to which of its completions."""
    own = packed.completion[..., None] == jnp.arange(packed.last.shape[1])[None, None]
    return own & packed.mask[..., None]


def masked_mean(
    x: Float[Array, "..."] | Bool[Array, "..."],
    mask: Bool[Array, "..."],
    axis: int | None = None,
    count: Int[Array, ""] | None = None,
) -> Float[Array, "..."]:
    """The mean over what the mask marks; 0 where it marks nothing.

    With `count`, the number marked in a whole batch, it is this part's share of that batch's mean; shares sum to it.
    """
    if count is None:
        count = jnp.sum(mask, axis=axis)
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis) / jnp.maximum(count, 1).astype(jnp.float32)

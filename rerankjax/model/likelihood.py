"""How likely a decoder finds a completion.

A row is a prompt padded on the left to P tokens, then a completion padded on the right to C, so L = P + C and every
completion starts at the same place: only its C positions are mapped to the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, hidden_states, to_logits


class Rows(NamedTuple):
    """Prompts and completions as arrays. The mask is true at real tokens, and an end-of-text token is a real one."""

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]


def select_log_probs(logits: Float[Array, "B C V"], tokens: Int[Array, "B C"]) -> Float[Array, "B C"]:
    """log softmax(logits) at `tokens`, in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def completion_log_probs(
    config: ModelConfig, params: Params, rows: Rows, prompt_length: int, temperature: float = 1.0
) -> tuple[Float[Array, "B C"], Float[Array, "B L D"]]:
    """Each completion token's log-probability at `temperature` (nats; padding holds 0), and the hidden states."""
    hidden = hidden_states(config, params, rows.tokens, rows.mask)
    logits = to_logits(config, params, hidden[:, prompt_length - 1 : -1]) / temperature
    log_probs = select_log_probs(logits, rows.tokens[:, prompt_length:])
    return jnp.where(rows.mask[:, prompt_length:], log_probs, 0.0), hidden


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """The mean over what the mask marks; 0 where it marks nothing."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)

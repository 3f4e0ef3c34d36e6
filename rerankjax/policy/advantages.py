"""Rewards and advantages of PPO for language models. Shapes: B rows, C completion positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from rerankjax.model.likelihood import masked_mean

KL_ERROR_CLIP = 0.2  # the KL controller's largest relative error (arXiv 1909.08593, section 2.2)


def token_rewards(
    scores: Num[Array, " B"], log_ratios: Float[Array, "B C"], mask: Bool[Array, "B C"], kl_coef: Float[Array, ""]
) -> Float[Array, "B C"]:
    """-kl_coef * log(policy / reference) at each token, and the score at the last real one (arXiv 1909.08593).

    Always float32: an integer score would otherwise make every reward an integer.
    """
    last = mask & ~jnp.concatenate([mask[:, 1:], jnp.zeros_like(mask[:, :1])], axis=1)
    rewards = -kl_coef * log_ratios.astype(jnp.float32) + jnp.where(last, scores[:, None].astype(jnp.float32), 0.0)
    return jnp.where(mask, rewards, 0.0)


def gae(
    rewards: Float[Array, "B C"], values: Float[Array, "B C"], mask: Bool[Array, "B C"], gamma: float, lam: float
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Generalised advantage estimates and returns (arXiv 1506.02438, equation 16); 0 at padding.

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * lam * A_{t+1}; V is 0 after the last real token.
    """
    values = jnp.where(mask, values, 0.0)
    next_values = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
    deltas = jnp.where(mask, rewards + gamma * next_values - values, 0.0)

    def back(advantage: Array, delta: Array) -> tuple[Array, Array]:
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(deltas[:, 0]), deltas.T, reverse=True)
    advantages = jnp.where(mask, advantages.T, 0.0)
    return advantages, advantages + values


def whiten(x: Float[Array, "B C"], mask: Bool[Array, "B C"], keep_mean: bool = False) -> Float[Array, "B C"]:
    """Mean 0 (unless kept) and population variance 1 over the real tokens of the global batch; 0 at padding."""
    mean = masked_mean(x, mask)
    scaled = (x - mean) * jax.lax.rsqrt(masked_mean((x - mean) ** 2, mask) + 1e-8)
    return jnp.where(mask, scaled + mean if keep_mean else scaled, 0.0)


def adapt_kl_coef(
    kl_coef: Float[Array, ""], kl: Float[Array, ""], target: float, horizon: float, rows: int
) -> Float[Array, ""]:
    """The adaptive controller of arXiv 1909.08593, section 2.2: a proportional error, clipped.

    `kl` and `target` are nats per sequence, `rows` the sequences since the last call, `horizon` in sequences.
    """
    return kl_coef * (1 + jnp.clip(kl / target - 1, -KL_ERROR_CLIP, KL_ERROR_CLIP) * rows / horizon)

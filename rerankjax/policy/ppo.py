"""PPO against the reranker with a KL penalty to the SFT model (stage C of the paper; arXiv 1707.06347, 2403.17031).

The policy and its value function share a trunk: parameters {"decoder": ..., "value": [D]}. One iteration samples a
rollout, then takes `epochs` passes over it in `minibatches` updates each. The rollout's figures (old log-probabilities,
values, advantages) are computed once, by the policy that sampled.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import masked_mean, packed_log_probs, take_places
from rerankjax.model.packing import Packed
from rerankjax.model.training import OptimizerConfig
from rerankjax.policy.advantages import KL_ERROR_CLIP, adapt_kl_coef, gae, token_rewards, whiten
from rerankjax.reranker.ensembles import ENSEMBLES, combined

OWN_SCORE = "reranker"  # the reward that is the score of the iteration's reranker


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Coefficients as the field names them. `kl_target` is in nats per sequence; 0 keeps `kl_coef` fixed.

    kl_horizon: in sequences; see `adapt_kl_coef`.
    """

    iterations: int
    batch_size: int  # rollouts per iteration
    learning_rate: float  # decays linearly to 0
    epochs: int
    minibatches: int
    kl_coef: float
    kl_target: float = 0.0
    kl_horizon: float = 10_000.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    policy_clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    score_clip: float = 5.0  # standard deviations of the reference's scores
    missing_eos_penalty: float = -1.0  # the score of a completion that the length limit cut
    rollouts_in_flight: int = 0  # drawn at a time on each host; 0: all of an iteration
    whiten_rewards: bool = False
    reward: str = OWN_SCORE  # or one of `ENSEMBLES`: combines the scores of the reranker's members
    reward_spread: float = 1.0  # k of the ensemble mean - k sd
    microbatches: int = 1  # parts of a minibatch that are computed one at a time

    def __post_init__(self) -> None:
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide batch_size = {self.batch_size}: choose a divisor"
            )
        if min(self.iterations, self.epochs, self.minibatches) < 1:
            raise ValueError(
                f"iterations = {self.iterations}, epochs = {self.epochs}, minibatches = {self.minibatches}: "
                "each must be 1 or more"
            )
        if self.reward not in (OWN_SCORE, *ENSEMBLES):
            raise ValueError(f"reward = {self.reward!r} is unknown: use one of {', '.join((OWN_SCORE, *ENSEMBLES))}")
        for name in ("kl_coef", "kl_target", "value_coef", "reward_spread"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative: use 0 or more")
        if self.kl_target and self.kl_horizon <= KL_ERROR_CLIP * self.batch_size:
            raise ValueError(
                f"kl_horizon = {self.kl_horizon}: one iteration of batch_size = {self.batch_size} completions could "
                f"take the KL coefficient to 0: use more than {KL_ERROR_CLIP * self.batch_size:g}"
            )

    @property
    def optimizer(self) -> OptimizerConfig:
        """Adam with eps 1e-5 and linear decay, as openai/lm-human-preferences and arXiv 2403.17031."""
        updates = self.iterations * self.epochs * self.minibatches
        return OptimizerConfig(self.learning_rate, updates, schedule="linear", eps=1e-5, microbatches=self.microbatches)


class Rollout(NamedTuple):
    """An iteration's figures for B completions of at most C tokens, all computed by the policy that sampled them."""

    mask: Bool[Array, "B C"]
    old_log_probs: Float[Array, "B C"]
    old_values: Float[Array, "B C"]
    advantages: Float[Array, "B C"]
    returns: Float[Array, "B C"]


class PPOBatch(NamedTuple):
    """A part of a minibatch: packed sequences, and the rollout's figures for each of their T completion tokens.

    `model.training.Counts` counts the mask, the completions and `real` of `packed`.
    """

    packed: Packed
    old_log_probs: Float[Array, "B T"]
    old_values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


class Reward(NamedTuple):
    """The R rerankers that PPO's reward combines: each one's parameters, and the mean and standard deviation of its
    scores of the reference's samples."""

    params: tuple[Params, ...]
    mean: Float[Array, " R"]
    std: Float[Array, " R"]


def init_policy(trunk: Params) -> Params:
    """A policy on the SFT model's trunk; its value head starts at zero."""
    return {"decoder": trunk, "value": jnp.zeros_like(trunk["norm"]["scale"], jnp.float32)}


def policy_outputs(
    config: ModelConfig, params: Params, packed: Packed, temperature: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each completion token, and the value of the state before it."""
    log_probs, hidden = packed_log_probs(config, params["decoder"], packed, temperature)
    values = take_places(hidden, packed.before).astype(jnp.float32) @ params["value"]
    return log_probs, jnp.where(packed.mask, values, 0.0)


def normalised_scores(
    ppo: PPOConfig, scores: Float[Array, "R B"], reward: Reward, finished: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """One score per completion, in standard deviations: (score - mean) / std of the R rerankers, combined, clipped."""
    scaled = (scores - reward.mean[:, None]) / reward.std[:, None]
    one = scaled[0] if ppo.reward == OWN_SCORE else combined(ppo.reward, scaled, ppo.reward_spread)
    return jnp.where(finished, jnp.clip(one, -ppo.score_clip, ppo.score_clip), ppo.missing_eos_penalty)


def policy_loss(log_ratio: Float[Array, "..."], advantages: Float[Array, "..."], clip: float) -> Float[Array, "..."]:
    """-min(ratio * A, clip(ratio) * A) (arXiv 1707.06347, equation 7)."""
    ratio = jnp.exp(log_ratio)
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))


def value_loss(
    values: Float[Array, "..."], old_values: Float[Array, "..."], returns: Float[Array, "..."], clip: float
) -> Float[Array, "..."]:
    """Half the larger of two squared errors: of the value, and of the value clipped to within `clip` of the old one."""
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_loss(
    config: ModelConfig,
    ppo: PPOConfig,
    params: Params,
    batch: PPOBatch,
    temperature: float,
    count: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss and its metrics, means over the completions' tokens; `count` as in `masked_mean`."""
    mask = batch.packed.mask
    # Rematerialised as a whole, so that this forward pass is the very program that gave the old log-probabilities: the
    # first ratio is then exactly 1, not 1 to within rounding.
    outputs = jax.checkpoint(lambda p: policy_outputs(config, p, batch.packed, temperature))
    log_probs, values = outputs(params)
    log_ratio = log_probs - batch.old_log_probs
    losses = policy_loss(log_ratio, batch.advantages, ppo.policy_clip)
    policy = masked_mean(losses, mask, count=count)
    value = masked_mean(value_loss(values, batch.old_values, batch.returns, ppo.value_clip), mask, count=count)
    metrics = {
        "policy_loss": policy,
        "value_loss": value,
        "clip_fraction": masked_mean(jnp.abs(jnp.expm1(log_ratio)) > ppo.policy_clip, mask, count=count),
        "ratio_deviation": jnp.max(jnp.where(mask, jnp.abs(jnp.expm1(log_ratio)), 0.0)),
        "approx_kl": masked_mean(
            jnp.expm1(log_ratio) - log_ratio, mask, count=count
        ),  # k3, joschu.net/blog/kl-approx.html
    }
    return policy + ppo.value_coef * value, metrics


def make_rollout(
    ppo: PPOConfig,
    mask: Bool[Array, "B C"],
    scores: Float[Array, "R B"],
    finished: Bool[Array, " B"],
    log_probs: Float[Array, "B C"],
    reference_log_probs: Float[Array, "B C"],
    values: Float[Array, "B C"],
    reward: Reward,
    kl_coef: Float[Array, ""],
) -> tuple[Rollout, Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The rollout with its whitened advantages, the next KL coefficient, and the iteration's metrics.

    scores: the R rerankers' raw scores; finished: false where the length limit cut a completion.
    """
    log_ratios = log_probs - reference_log_probs
    of_completion = normalised_scores(ppo, scores, reward, finished)
    rewards = token_rewards(of_completion, log_ratios, mask, kl_coef)
    if ppo.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    kl = jnp.mean(jnp.sum(log_ratios, axis=1))
    next_coef = adapt_kl_coef(kl_coef, kl, ppo.kl_target, ppo.kl_horizon, len(mask)) if ppo.kl_target else kl_coef
    metrics = {
        "score": jnp.mean(of_completion),
        "kl": kl,
        "kl_coef": kl_coef,
        "length": jnp.mean(jnp.sum(mask, axis=1)),
    }
    return Rollout(mask, log_probs, values, whiten(advantages, mask), returns), next_coef, metrics

"""PPO against the reranker with a KL penalty to the SFT model (stage C of the paper; arXiv 1707.06347, 2403.17031).

The policy and its value function share a trunk: parameters {"decoder": ..., "value": [D]}. One iteration samples a
rollout, then takes `epochs` passes over it in `minibatches` updates each. What an update is measured against (the old
log-probabilities, values, advantages) is computed once, by the policy that sampled.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from rerankjax.candidates.sampling import SamplingConfig, sample
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, in_compute_dtype
from rerankjax.model.likelihood import Rows, completion_log_probs, masked_mean
from rerankjax.model.lora import LoraConfig, attach_trunk
from rerankjax.model.sharding import DRAWING, constrain
from rerankjax.model.training import (
    OptimizerConfig,
    TrainState,
    apply_gradients,
    gradients_of,
    make_optimizer,
)
from rerankjax.policy.advantages import adapt_kl_coef, gae, token_rewards, whiten
from rerankjax.reranker.bradley_terry import score_rows


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Coefficients as the field names them. A `kl_target` of 0 keeps `kl_coef` fixed; else nats a sequence."""

    iterations: int
    batch_size: int  # rollouts an iteration
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
    whiten_rewards: bool = False
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
        for name in ("kl_coef", "kl_target", "value_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative: use 0 or more")

    @property
    def optimizer(self) -> OptimizerConfig:
        """Adam with eps 1e-5 and linear decay, as openai/lm-human-preferences and arXiv 2403.17031."""
        updates = self.iterations * self.epochs * self.minibatches
        return OptimizerConfig(self.learning_rate, updates, schedule="linear", eps=1e-5, microbatches=self.microbatches)


class Experience(NamedTuple):
    """Sampled rows and what others think of them."""

    rows: Rows
    scores: Float[Array, " B"]  # normalised, as rewarded
    reference_log_probs: Float[Array, "B C"]


class Rollout(NamedTuple):
    """What one iteration learns from; `old_*`, advantages and returns are those of the policy that sampled."""

    rows: Rows
    old_log_probs: Float[Array, "B C"]
    old_values: Float[Array, "B C"]
    advantages: Float[Array, "B C"]
    returns: Float[Array, "B C"]


class Reward(NamedTuple):
    """The reranker as PPO sees it: its scores less `mean`, over `std`, both taken over the reference's samples."""

    params: Params
    mean: Float[Array, ""]
    std: Float[Array, ""]


def init_policy(trunk: Params) -> Params:
    """A policy on the SFT model's trunk; its value head starts at zero."""
    return {"decoder": trunk, "value": jnp.zeros_like(trunk["norm"]["scale"], jnp.float32)}


def policy_outputs(
    config: ModelConfig, params: Params, rows: Rows, prompt_length: int, temperature: float
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Log-probability of each completion token, and the value of the state before it."""
    log_probs, hidden = completion_log_probs(config, params["decoder"], rows, prompt_length, temperature)
    values = hidden[:, prompt_length - 1 : -1].astype(jnp.float32) @ params["value"]
    return log_probs, jnp.where(rows.mask[:, prompt_length:], values, 0.0)


def normalised_scores(
    ppo: PPOConfig, scores: Float[Array, " B"], reward: Reward, finished: Bool[Array, " B"]
) -> Float[Array, " B"]:
    scaled = jnp.clip((scores - reward.mean) / reward.std, -ppo.score_clip, ppo.score_clip)
    return jnp.where(finished, scaled, ppo.missing_eos_penalty)


def policy_loss(log_ratio: Float[Array, "B C"], advantages: Float[Array, "B C"], clip: float) -> Float[Array, "B C"]:
    """-min(ratio * A, clip(ratio) * A) (arXiv 1707.06347, equation 7)."""
    ratio = jnp.exp(log_ratio)
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))


def value_loss(
    values: Float[Array, "B C"], old_values: Float[Array, "B C"], returns: Float[Array, "B C"], clip: float
) -> Float[Array, "B C"]:
    """Half the larger squared error of the value and of the value held within `clip` of the old one."""
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_loss(
    config: ModelConfig,
    ppo: PPOConfig,
    params: Params,
    batch: Rollout,
    prompt_length: int,
    temperature: float,
    count: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Means over the completions' tokens; `count` as in `masked_mean`."""
    mask = batch.rows.mask[:, prompt_length:]
    # Rematerialised as a whole, so that this forward pass is the very program that gave the old log-probabilities: the
    # first ratio is then exactly 1, not 1 to within rounding.
    outputs = jax.checkpoint(lambda p: policy_outputs(config, p, batch.rows, prompt_length, temperature))
    log_probs, values = outputs(params)
    log_ratio = log_probs - batch.old_log_probs
    losses = policy_loss(log_ratio, batch.advantages, ppo.policy_clip)
    policy = masked_mean(losses, mask, count=count)
    value = masked_mean(value_loss(values, batch.old_values, batch.returns, ppo.value_clip), mask, count=count)
    metrics = {
        "policy_loss": policy,
        "value_loss": value,
        "clip_fraction": masked_mean(jnp.abs(jnp.expm1(log_ratio)) > ppo.policy_clip, mask, count=count),
        "ratio_deviation": jnp.max(jnp.abs(jnp.expm1(log_ratio))),
        "approx_kl": masked_mean(
            jnp.expm1(log_ratio) - log_ratio, mask, count=count
        ),  # k3, joschu.net/blog/kl-approx.html
    }
    return policy + ppo.value_coef * value, metrics


def ppo_update(
    config: ModelConfig,
    ppo: PPOConfig,
    lora: LoraConfig,
    mesh: Mesh,
    state: TrainState,
    base: Params | None,
    batch: Rollout,
    prompt_length: int,
    temperature: float,
) -> tuple[TrainState, dict[str, Array]]:
    """One update. The base, None where the state is of the whole policy, has no gradient and no optimiser state."""
    count = jnp.sum(batch.rows.mask[:, prompt_length:])

    def loss_of(params: Params, batch: Rollout) -> tuple[Array, dict[str, Array]]:
        return ppo_loss(config, ppo, attach_trunk(base, params, lora), batch, prompt_length, temperature, count)

    parts, gradients = gradients_of(loss_of, state.params, batch, ppo.microbatches)
    metrics = {name: jnp.sum(m) for name, m in parts.items()} | {"ratio_deviation": jnp.max(parts["ratio_deviation"])}
    return apply_gradients(state, gradients, make_optimizer(ppo.optimizer), mesh), metrics


def collect(
    config: ModelConfig,
    pooling: str,
    sampling: SamplingConfig,
    ppo: PPOConfig,
    eos: int,
    pad: int,
    mesh: Mesh,
    policy: Params,
    reference: Params,
    reward: Reward,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, " B"],
    stops: Int[Array, "states V"],
    starts: Int[Array, " B"] | None = None,
    *,
    reward_config: ModelConfig | None = None,
) -> Experience:
    """One completion a prompt, scored by the reranker and weighed by the reference, at the sampling temperature.

    stops, starts: as in `sample`. reward_config: the reranker's shape, where that is not the policy's; the tokenizer is
    the same for both.
    """
    P = prompts.shape[1]
    drawing = constrain(in_compute_dtype(config, policy["decoder"]), mesh, DRAWING)
    drawn = sample(config, sampling, drawing, prompts, prompt_mask, keys, stops, eos, pad, starts)
    rows = Rows(jnp.concatenate([prompts, drawn.tokens], axis=1), jnp.concatenate([prompt_mask, drawn.mask], axis=1))
    reference_log_probs, _ = completion_log_probs(config, reference, rows, P, sampling.temperature)
    scores = score_rows(reward_config or config, pooling, reward.params, rows, P)
    scores = normalised_scores(ppo, scores, reward, drawn.finished)
    return Experience(rows, scores, reference_log_probs)


def prepare(
    ppo: PPOConfig,
    experience: Experience,
    log_probs: Float[Array, "B C"],
    values: Float[Array, "B C"],
    kl_coef: Float[Array, ""],
) -> tuple[Rollout, Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The rollout with its whitened advantages, the next KL coefficient, and the iteration's metrics."""
    mask = experience.rows.mask[:, -log_probs.shape[1] :]
    log_ratios = log_probs - experience.reference_log_probs
    rewards = token_rewards(experience.scores, log_ratios, mask, kl_coef)
    if ppo.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    kl = jnp.mean(jnp.sum(log_ratios, axis=1))
    next_coef = adapt_kl_coef(kl_coef, kl, ppo.kl_target, ppo.kl_horizon, len(mask)) if ppo.kl_target else kl_coef
    metrics = {
        "score": jnp.mean(experience.scores),
        "kl": kl,
        "kl_coef": kl_coef,
        "length": jnp.mean(jnp.sum(mask, axis=1)),
    }
    return Rollout(experience.rows, log_probs, values, whiten(advantages, mask), returns), next_coef, metrics

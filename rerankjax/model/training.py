"""What every trainer shares: the state that a step maps to the next, and the optimiser."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from rerankjax.model.decoder import Params


class TrainState(NamedTuple):
    params: Params
    opt_state: Any
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a warm-up, then a decay to zero over `steps` updates.

    `schedule` is "cosine" or "linear"; `eps` is 1e-5 in PPO for language models (openai/lm-human-preferences), where it
    damps the first steps on tiny gradients; `max_grad_norm` clips the global norm.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    schedule: str = "cosine"
    eps: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f'schedule = "{self.schedule}" is unknown: use "cosine" or "linear"')
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} leaves nothing of steps = {self.steps}: lower it")


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    decay_steps = config.steps - config.warmup_steps
    decay = (
        optax.cosine_decay_schedule(config.learning_rate, decay_steps)
        if config.schedule == "cosine"
        else optax.linear_schedule(config.learning_rate, 0.0, decay_steps)
    )
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps + 1)
    # Step w of w warm-up steps runs at w / (w + 1) of the peak, so no update is wasted at rate 0.
    rate = optax.join_schedules([lambda step: warmup(step + 1), decay], [config.warmup_steps])
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate, eps=config.eps))


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def apply_gradients(state: TrainState, gradients: Params, optimizer: optax.GradientTransformation) -> TrainState:
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)

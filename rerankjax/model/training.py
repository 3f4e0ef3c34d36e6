"""What every trainer shares: the state that a step maps to the next, its gradients, and the optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rerankjax.model.decoder import Params
from rerankjax.model.sharding import constrain, shardings_of


class TrainState(NamedTuple):
    params: Params
    opt_state: Any
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a warm-up, then a decay to zero over `steps` updates.

    `schedule` is "cosine" or "linear"; `eps` is 1e-5 in PPO for language models (openai/lm-human-preferences), where it
    damps the first steps on tiny gradients; `max_grad_norm` clips the global norm. A batch's gradient is summed over
    `microbatches` parts of it, one at a time: memory is that of one, the result that of the whole.
    """

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    schedule: str = "cosine"
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    microbatches: int = 1

    def __post_init__(self) -> None:
        if self.microbatches < 1:
            raise ValueError(f"microbatches = {self.microbatches}: a batch has at least one part")
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


def start_state(params: Params, config: OptimizerConfig, mesh: Mesh) -> TrainState:
    """A state on the mesh with parameters of its own: updates donate them, and others may still want these."""

    def start(params: Params) -> TrainState:
        return init_state(jax.tree.map(jnp.copy, params), make_optimizer(config))

    return jax.jit(start, out_shardings=shardings_of(jax.eval_shape(start, params), mesh))(params)


def microbatches_of(batch: Any, parts: int) -> Any:
    """Arrays [B, ...] as [parts, B / parts, ...]. Each part has rows of every device: none has to move."""
    return jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)


def gradients_of(
    loss_of: Callable[[Params, Any], tuple[Float[Array, ""], dict[str, Array]]],
    params: Params,
    batch: Any,
    parts: int,
) -> tuple[dict[str, Float[Array, " parts"]], Params]:
    """The metrics of each of `parts` microbatches, the loss among them, and the gradient of the sum of their losses.

    loss_of: (parameters, microbatch) -> (loss, metrics), divided by the counts of the whole batch, so that they add up.
    """

    def of(part: Any) -> tuple[dict[str, Array], Params]:
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, part)
        return {"loss": loss, **metrics}, gradients

    if parts == 1:  # a loop of one would be compiled as a loop
        metrics, gradients = of(batch)
        return jax.tree.map(lambda m: m[None], metrics), gradients

    def add(total: Params, part: Any) -> tuple[Params, dict[str, Array]]:
        metrics, gradients = of(part)
        return jax.tree.map(jnp.add, total, gradients), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), microbatches_of(batch, parts))
    return metrics, total


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The next state, split over the mesh as this one is."""
    gradients = constrain(gradients, mesh)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return constrain(TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), mesh)

"""What every trainer shares: the state that a step maps to the next, its gradients, and the optimiser."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rerankjax.model.decoder import Params
from rerankjax.model.packing import Item, PackConfig, Packed, pack, real_fraction
from rerankjax.model.sharding import by_row, constrain, on_mesh, replicated, shardings_of, to_global

LossOf = Callable[..., tuple[Float[Array, ""], dict[str, Array]]]


class TrainState(NamedTuple):
    params: Params
    opt_state: Any
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a warm-up, then a decay to zero over `steps` updates.

    `schedule` is "cosine" or "linear"; `eps` is 1e-5 in PPO for language models (openai/lm-human-preferences), where it
    damps the first steps on tiny gradients; `max_grad_norm` clips the global norm. A batch's gradient is summed over
    its parts, one at a time: it takes the memory of one part, and the result is that of the whole batch. There are
    `microbatches` parts if every sequence has the maximum length, otherwise fewer (see `model.packing`).
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
            raise ValueError(f"microbatches = {self.microbatches}: use 1 or more")
        if self.schedule not in ("cosine", "linear"):
            raise ValueError(f'schedule = "{self.schedule}" is unknown: use "cosine" or "linear"')
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} is not below steps = {self.steps}: lower it")


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
    """A state on the mesh with a copy of `params`: updates donate the copy, and callers may still need the original."""

    def start(params: Params) -> TrainState:
        return init_state(jax.tree.map(jnp.copy, params), make_optimizer(config))

    return jax.jit(start, out_shardings=shardings_of(jax.eval_shape(start, params), mesh))(params)


class Counts(NamedTuple):
    """The counts of a whole batch, with which the losses of its parts add up to the batch's mean."""

    sequences: Int[Array, ""]
    tokens: Int[Array, ""]  # of each sequence's first completion

    @classmethod
    def from_parts(cls, parts: Sequence[Packed], each: int) -> "Counts":
        """The counts of a batch of sequences with `each` completions."""
        sequences = sum(int(np.sum(part.real)) for part in parts) // each
        tokens = sum(int(np.sum(part.mask & (part.completion % each == 0))) for part in parts)
        return cls(np.int32(sequences), np.int32(tokens))  # type: ignore[arg-type]  # a host's scalars


def batch_of(items: Sequence[Item], sizes: PackConfig) -> tuple[list[Packed], Counts]:
    """A batch of sequences as `Update` takes it, on the host."""
    parts, _ = pack(items, sizes)
    return parts, Counts.from_parts(parts, sizes.each)


def feed_batch(parts: list[Any], counts: Counts, mesh: Mesh) -> tuple[list[Any], Counts, float]:
    """A host's batch on the mesh, and the fraction of its tokens that are real. Parts are `Packed` or hold `packed`."""
    packed = [part if isinstance(part, Packed) else part.packed for part in parts]
    return to_global(parts, by_row(mesh)), to_global(counts, replicated(mesh)), real_fraction(packed)


class Update:
    """An update of a training state: (state, frozen base, parts of the batch, their `Counts`) -> (state, metrics).

    The state is donated; without adapters the base is None. Both keep the sharding that they have; the state's is that
    of `start_state`. One program sums gradients over the parts, whose number follows from the batch's lengths.

    loss_of: (parameters, base, part, counts) -> (loss, metrics), the part's shares of the batch's. largest: the metrics
    for which the batch has the maximum over its parts instead of the sum.
    """

    def __init__(self, loss_of: LossOf, config: OptimizerConfig, mesh: Mesh, largest: Collection[str] = ()) -> None:
        optimizer = make_optimizer(config)
        self._largest = largest

        def add(
            total: Params, params: Params, base: Params | None, part: Any, counts: Counts
        ) -> tuple[Params, dict[str, Array]]:
            of_part = jax.value_and_grad(lambda p: loss_of(p, base, part, counts), has_aux=True)
            (loss, metrics), gradients = of_part(params)
            return constrain(jax.tree.map(jnp.add, total, gradients), mesh), {"loss": loss, **metrics}

        def apply(state: TrainState, total: Params) -> TrainState:
            return apply_gradients(state, total, optimizer, mesh)

        def zeros(params: Params) -> Params:
            return constrain(jax.tree.map(jnp.zeros_like, params), mesh)

        rows = by_row(mesh)
        self.zeros = jax.jit(zeros)
        self.add = jax.jit(on_mesh(mesh, add), in_shardings=(None, None, None, rows, None), donate_argnums=0)
        self.apply = jax.jit(on_mesh(mesh, apply), donate_argnums=0)

    def __call__(
        self, state: TrainState, base: Params | None, parts: Sequence[Any], counts: Counts
    ) -> tuple[TrainState, dict[str, Array]]:
        total, each = self.zeros(state.params), []
        for part in parts:
            total, metrics = self.add(total, state.params, base, part, counts)
            each.append(metrics)
        metrics = {
            name: functools.reduce(jnp.maximum if name in self._largest else jnp.add, (m[name] for m in each))
            for name in each[0]
        }
        return self.apply(state, total), metrics


def apply_gradients(
    state: TrainState, gradients: Params, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The next state, split over the mesh as this one is."""
    gradients = constrain(gradients, mesh)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it, also where the caller has "strict"
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return constrain(TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), mesh)

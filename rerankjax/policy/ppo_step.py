"""PPO's iteration on a mesh: a rollout, what it is measured against, and the updates, each a jitted program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from rerankjax.candidates.sampling import SamplingConfig, sample_keys
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import Rows
from rerankjax.model.lora import FULL, LoraConfig, attach_trunk
from rerankjax.model.sharding import by_row, on_mesh
from rerankjax.model.training import TrainState, microbatches_of
from rerankjax.policy.ppo import Experience, PPOConfig, Reward, Rollout, collect, policy_outputs, ppo_update, prepare

Taken = TypeVar("Taken", Rows, Rollout)


class Programs(NamedTuple):
    """The large programs of an iteration, jitted. The base is None where the state is of the whole policy."""

    gather: Callable[..., Experience]  # parameters, base, reference, reward, prompts, mask, keys, stop table, starts
    outputs: Callable[..., tuple[Array, Array]]  # parameters, base, rows, a minibatch's index
    update: Callable[..., tuple[TrainState, dict[str, Array]]]  # state, which is donated, base, rollout, index


@functools.cache
def make_ppo_programs(
    config: ModelConfig,
    pooling: str,
    sampling: SamplingConfig,
    ppo: PPOConfig,
    prompt_length: int,
    eos: int,
    pad: int,
    mesh: Mesh,
    lora: LoraConfig = FULL,
    reward_config: ModelConfig | None = None,
) -> Programs:
    """The programs of `make_ppo_step`; arguments as in `collect`."""
    by_rows = by_row(mesh)

    def take(rows: Taken, index: Int[Array, " M"]) -> Taken:
        return jax.lax.with_sharding_constraint(jax.tree.map(lambda a: a[index], rows), by_rows)

    @functools.partial(jax.jit, out_shardings=by_rows)
    @functools.partial(on_mesh, mesh)
    def gather(params: Params, base: Params | None, *others: Any) -> Experience:
        policy = attach_trunk(base, params, lora)
        return collect(config, pooling, sampling, ppo, eos, pad, mesh, policy, *others, reward_config=reward_config)

    @functools.partial(jax.jit, out_shardings=by_rows)
    @functools.partial(on_mesh, mesh)
    def outputs(params: Params, base: Params | None, rows: Rows, index: Int[Array, " M"]) -> tuple[Array, Array]:
        policy, batch = attach_trunk(base, params, lora), take(rows, index)

        def of(rows: Rows) -> tuple[Array, Array]:
            return policy_outputs(config, policy, rows, prompt_length, sampling.temperature)

        if ppo.microbatches == 1:
            return of(batch)
        parts = jax.lax.map(of, microbatches_of(batch, ppo.microbatches))
        return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), parts)

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(on_mesh, mesh)
    def update(
        state: TrainState, base: Params | None, rollout: Rollout, index: Int[Array, " M"]
    ) -> tuple[TrainState, dict[str, Array]]:
        return ppo_update(
            config, ppo, lora, mesh, state, base, take(rollout, index), prompt_length, sampling.temperature
        )

    return Programs(gather, outputs, update)


@functools.cache
def make_ppo_step(
    programs: Programs, ppo: PPOConfig, mesh: Mesh
) -> Callable[..., tuple[TrainState, Float[Array, ""], dict[str, Array]]]:
    """One iteration: (state, base, reference, reward, prompts, mask, problem ids, key, KL coefficient, stop table, its
    starts) -> (state, next KL coefficient, metrics). The state is donated; nothing leaves the device.

    The state is of {"decoder": an adapter, "value"} over the frozen base, or of the whole policy where that is None.
    Policy, reference and reward may share a base: an array that is passed more than once is there once.

    The old log-probabilities are taken in minibatches of an update's shape: a batch of another shape may be summed in
    another order. Minibatches are programs of their own, not a scan: XLA runs a loop's body on one CPU core.
    """
    by_rows = by_row(mesh)
    gather, outputs, update = programs

    @jax.jit
    def orders(key: Key[Array, ""]) -> Int[Array, "epochs*minibatches M"]:
        shuffle = jax.vmap(lambda k: jax.random.permutation(k, ppo.batch_size))
        return shuffle(jax.random.split(key, ppo.epochs)).reshape(ppo.epochs * ppo.minibatches, -1)

    place = functools.partial(jax.device_put, device=by_rows)
    keys_of = jax.jit(lambda key, problems: sample_keys(key, problems, 1), out_shardings=by_rows)
    join = jax.jit(lambda parts: jax.tree.map(lambda *a: jnp.concatenate(a), *parts), out_shardings=by_rows)
    finish = jax.jit(functools.partial(prepare, ppo))

    def step(
        state: TrainState,
        base: Params | None,
        reference: Params,
        reward: Reward,
        prompts: Array,
        prompt_mask: Array,
        problems: Array,
        key: Array,
        kl_coef: Array,
        stops: Array,
        starts: Array | None = None,
    ) -> tuple[TrainState, Array, dict[str, Array]]:
        sample_key, order_key = jax.random.split(key)
        keys = keys_of(sample_key, problems)
        prompts, prompt_mask = place(prompts), place(prompt_mask)
        experience = gather(state.params, base, reference, reward, prompts, prompt_mask, keys, stops, starts)
        in_turn = jnp.arange(ppo.batch_size).reshape(ppo.minibatches, -1)
        log_probs, values = join([outputs(state.params, base, experience.rows, index) for index in in_turn])
        rollout, next_coef, metrics = finish(experience, log_probs, values, kl_coef)
        updates = []
        for index in orders(order_key):
            state, update_metrics = update(state, base, rollout, index)
            updates.append(update_metrics)
        mean = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        ends = {f"{which}_ratio_deviation": updates[i]["ratio_deviation"] for which, i in (("first", 0), ("last", -1))}
        return state, next_coef, metrics | mean | ends

    return step

"""PPO's iteration on a mesh, from drawn completions to the next state: first the rollout's figures, then the updates.

The large programs are jitted and take packed sequences (`model.packing`). Between programs, the figures of an
iteration, a few for each token, are arrays [B, C] on the host.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from rerankjax.model.attention import skips
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.likelihood import packed_log_probs
from rerankjax.model.lora import FULL, LoraConfig, attach_trunk
from rerankjax.model.packing import PackConfig, Packed, Sources, pack, real_fraction
from rerankjax.model.sharding import by_row, on_mesh, replicated, row_shards, to_global
from rerankjax.model.training import Counts, TrainState, Update
from rerankjax.policy.ppo import PPOBatch, PPOConfig, Reward, Rollout, make_rollout, policy_outputs, ppo_loss
from rerankjax.reranker.bradley_terry import packed_scores


class Programs(NamedTuple):
    """The large programs of an iteration, and the sizes of their microbatches.

    Each takes one model: a compiler counts the memory of a base that a program takes twice twice.
    """

    reference: Callable[..., Array]  # reference, packed -> log-probabilities
    score: Callable[..., Array]  # reranker, packed -> scores [B K]
    outputs: Callable[..., tuple[Array, Array]]  # parameters, base, packed -> log-probabilities, values
    update: Update  # of parts that are `PPOBatch`es
    sizes: PackConfig
    completion_length: int


@functools.cache
def make_ppo_programs(
    config: ModelConfig,
    pooling: str,
    temperature: float,
    ppo: PPOConfig,
    prompt_length: int,
    completion_length: int,
    mesh: Mesh,
    lora: LoraConfig = FULL,
    reward_config: ModelConfig | None = None,
) -> Programs:
    """The programs of `make_ppo_step`.

    temperature: the one at which completions are drawn. Lengths are maxima, in tokens. reward_config: the reranker's
    shape, if it is not the policy's; both have the same tokenizer.
    """
    rows, everywhere = by_row(mesh), replicated(mesh)
    minibatch, lengths = ppo.batch_size // ppo.minibatches, (prompt_length, completion_length)
    sizes = PackConfig.from_batch_size(
        minibatch, ppo.microbatches, *lengths, shards=row_shards(mesh), long_rows=skips(config.attention)
    )

    def reference(params: Params, packed: Packed) -> Array:
        return packed_log_probs(config, params, packed, temperature)[0]

    def score(reranker: Params, packed: Packed) -> Array:
        return packed_scores(reward_config or config, pooling, reranker, packed)

    def outputs(params: Params, base: Params | None, packed: Packed) -> tuple[Array, Array]:
        return policy_outputs(config, attach_trunk(base, params, lora), packed, temperature)

    def loss_of(
        params: Params, base: Params | None, part: PPOBatch, counts: Counts
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        return ppo_loss(config, ppo, attach_trunk(base, params, lora), part, temperature, counts.tokens)

    def jitted(function: Callable[..., Any], models: int) -> Callable[..., Any]:
        return jax.jit(on_mesh(mesh, function), in_shardings=(None,) * models + (rows,), out_shardings=everywhere)

    update = Update(loss_of, ppo.optimizer, mesh, largest=("ratio_deviation",))
    return Programs(jitted(reference, 1), jitted(score, 1), jitted(outputs, 2), update, sizes, completion_length)


class Drawn(NamedTuple):
    """A completion that the policy drew, as token ids with its end, and whether it ended by itself."""

    tokens: Sequence[int]
    finished: bool


@functools.cache
def make_ppo_step(
    programs: Programs, ppo: PPOConfig, mesh: Mesh
) -> Callable[..., tuple[TrainState, Float[Array, ""], dict[str, Any]]]:
    """One iteration: (state, base, reference, reward, prompts, drawn, key, KL coefficient) -> (state, next KL
    coefficient, metrics). The state is donated. prompts: token ids; drawn: a `Drawn` for each.

    The state is of {"decoder": an adapter, "value"} over the frozen base, or of the whole policy if the base is None.
    Policy, reference and reward may share a base: an array that is passed more than once is stored once.

    The old log-probabilities are computed on the first epoch's minibatches, in the same parts as in its updates:
    elsewhere in its row, or beside other sequences, a token's terms might be summed in another order.
    """
    log_probs_of, score, outputs, update, sizes, completion_length = programs
    rows, everywhere = by_row(mesh), replicated(mesh)
    finish = jax.jit(functools.partial(make_rollout, ppo))

    @jax.jit
    def orders(key: Key[Array, ""]) -> Array:
        shuffle = jax.vmap(lambda k: jax.random.permutation(k, ppo.batch_size))
        return shuffle(jax.random.split(key, ppo.epochs)).reshape(ppo.epochs * ppo.minibatches, -1)

    def step(
        state: TrainState,
        base: Params | None,
        reference: Params,
        reward: Reward,
        prompts: Sequence[Sequence[int]],
        drawn: Sequence[Drawn],
        key: Key[Array, ""],
        kl_coef: Float[Array, ""],
    ) -> tuple[TrainState, Array, dict[str, Any]]:
        items = [(prompt, (d.tokens,)) for prompt, d in zip(prompts, drawn, strict=True)]
        minibatches = [_Minibatch.from_items(items, index, sizes) for index in np.asarray(orders(key))]
        first = minibatches[: ppo.minibatches]
        shape = ppo.batch_size, completion_length
        mask = np.arange(completion_length) < np.array([len(d.tokens) for d in drawn])[:, None]
        scores = np.zeros((len(reward.params), ppo.batch_size), np.float32)
        figures = np.zeros((3, *shape), np.float32)
        for minibatch in first:
            for part, source in zip(minibatch.parts, minibatch.sources, strict=True):
                placed = to_global(part, rows)
                of_reference, of_policy = log_probs_of(reference, placed), outputs(state.params, base, placed)
                of_completions = [score(reranker, placed) for reranker in reward.params]
                indices = source.item[part.mask], source.token[part.mask]
                for figure, packed in zip(figures, (of_reference, *of_policy), strict=True):
                    figure[indices] = np.asarray(packed)[part.mask]
                for member, of_member in enumerate(of_completions):
                    own = np.take_along_axis(np.asarray(of_member), np.asarray(part.completion), axis=1)
                    scores[member, indices[0]] = own[part.mask]
        finished = np.array([d.finished for d in drawn])
        reference_log_probs, log_probs, values = figures
        given = to_global((mask, scores, finished, log_probs, reference_log_probs, values), everywhere)
        rollout, next_coef, metrics = finish(*given, reward._replace(params=()), kl_coef)
        host: Rollout = jax.tree.map(np.asarray, rollout)
        updates = []
        for minibatch in minibatches:
            parts = [_batch(*one, host) for one in zip(minibatch.parts, minibatch.sources, strict=True)]
            counts = to_global(Counts.from_parts(minibatch.parts, sizes.each), everywhere)
            state, update_metrics = update(state, base, to_global(parts, rows), counts)
            updates.append(update_metrics)
        mean = {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
        ends = {f"{which}_ratio_deviation": updates[i]["ratio_deviation"] for which, i in (("first", 0), ("last", -1))}
        real = real_fraction([part for minibatch in minibatches for part in minibatch.parts])
        return state, next_coef, metrics | mean | ends | {"real_tokens": real}

    return step


def _batch(part: Packed, source: Sources, rollout: Rollout) -> PPOBatch:
    """The part with the rollout's figures for its tokens."""
    of_tokens: Any = (np.where(part.mask, figure[source.item, source.token], 0) for figure in rollout[1:])
    return PPOBatch(part, *of_tokens)


class _Minibatch(NamedTuple):
    parts: list[Packed]
    sources: list[Sources]  # of the iteration's items

    @classmethod
    def from_items(cls, items: Sequence[Any], index: np.ndarray, sizes: PackConfig) -> "_Minibatch":
        parts, sources = pack([items[i] for i in index], sizes)
        return cls(parts, [source._replace(item=index[source.item]) for source in sources])

"""Sampling with a KV cache. A sample is a function of the parameters, its prompt and its own key: nothing else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, decode_step, in_compute_dtype, prefill, unstack
from rerankjax.model.likelihood import select_log_probs
from rerankjax.model.sharding import (
    DRAWING,
    RULES,
    by_row,
    constrain,
    dividing,
    on_mesh,
    replicated,
    split_by_hand,
)

BLOCK = 256  # tokens whose probabilities are summed at once
SORTED = 128  # likeliest tokens that a CPU sorts


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn. `temperature` 0 is greedy.

    The `top_k` likeliest tokens of the tempered distribution are kept (0: all, arXiv 1805.04833), and of these the
    fewest with `top_p` of their mass (1: all, arXiv 1904.09751).
    """

    temperature: float
    top_p: float
    max_completion_length: int  # tokens, the end-of-text token included
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} is negative: use 0 for greedy decoding, or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} is not in (0, 1]: use 1 for the whole distribution")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} is negative: use 0 for all tokens")
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length = {self.max_completion_length}: use 1 or more")


class Samples(NamedTuple):
    """Sampled completions, padded on the right, with their end-of-text token or the one that met a stop string."""

    tokens: Int[Array, "B C"]
    mask: Bool[Array, "B C"]
    log_probs: Float[Array, "B C"]  # under the distribution sampled from: tempered, truncated to top-p
    raw_log_probs: Float[Array, "B C"]  # under the model at temperature 1
    finished: Bool[Array, " B"]  # false where the length limit cut it


def sample_keys(key: Key[Array, ""], problems: UInt[Array, " B"], samples: int) -> Key[Array, " B*{samples}"]:
    """A key for each (problem, sample), independent of the rest of the batch. `problems` are ids that do not change."""
    of_problem = jax.vmap(jax.random.fold_in, (None, 0))(key, problems)
    of_sample = jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(samples)))
    return of_sample(of_problem).reshape(-1)


def _likeliest(
    probs: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]]
) -> Bool[Array, "B V"]:
    """The fewest most likely tokens that are `enough`; ties at the edge are all kept.

    The edge is found by bisection over the bit patterns of non-negative floats, which order as the floats do: 31 sums
    are exact and far cheaper than a sort of the vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(probs.astype(jnp.float32), jnp.int32)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # enough at or above `low`, too few at or above `high`
        middle = low + (high - low) // 2
        holds = enough(bits >= middle[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low = jnp.zeros(probs.shape[0], jnp.int32)
    high = jnp.full_like(low, jnp.float32(2).view(jnp.int32))
    return bits >= jax.lax.fori_loop(0, 31, halve, (low, high))[0][:, None]


def nucleus(probs: Float[Array, "B V"], top_p: float) -> Bool[Array, "B V"]:
    """The fewest most likely tokens whose probabilities sum to at least `top_p`; ties at the edge are all kept.

    A CPU sorts the likeliest tokens of each row, seven times as fast, and bisects only where these are too few.
    """

    def by_bisection(probs: Array) -> Array:
        return _likeliest(probs, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=-1) >= top_p)

    def by_sorting(probs: Array) -> Array:
        first = jax.lax.top_k(probs, min(SORTED, probs.shape[-1]))[0]
        holds = jnp.cumsum(first, axis=-1) >= top_p
        edge = jnp.take_along_axis(first, jnp.argmax(holds, axis=-1, keepdims=True), axis=-1)
        enough = holds[:, -1:]
        return jax.lax.cond(
            jnp.all(enough),
            lambda: probs >= edge,
            lambda: jnp.where(enough, probs >= edge, by_bisection(probs)),
        )

    def of_rows(mesh: AbstractMesh) -> tuple[tuple[PartitionSpec, ...], PartitionSpec]:
        rows = PartitionSpec(dividing(mesh, RULES.batch, len(probs)))
        return (rows,), rows

    def on_cpu(probs: Array) -> Array:
        # Each device sorts its own rows, which XLA would collect on all devices.
        return split_by_hand(by_sorting, (probs,), of_rows)

    return jax.lax.platform_dependent(probs, cpu=on_cpu, default=by_bisection)


def likeliest(probs: Float[Array, "B V"], top_k: int) -> Bool[Array, "B V"]:
    """The `top_k` most likely tokens; ties at the edge are all kept."""
    return _likeliest(probs, lambda kept: jnp.sum(kept, axis=-1) >= top_k)


def choose(
    sampling: SamplingConfig, logits: Float[Array, "B V"], uniform: Float[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """A token by inversion of the cumulative distribution at `uniform`, its log-probability, and its raw one."""
    logits = logits.astype(jnp.float32)
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
        raw = select_log_probs(logits[:, None], token[:, None])[:, 0]
        return token, jnp.zeros_like(raw), raw
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        scaled = jnp.where(likeliest(jax.nn.softmax(scaled), sampling.top_k), scaled, -jnp.inf)
    if sampling.top_p < 1:
        scaled = jnp.where(nucleus(jax.nn.softmax(scaled), sampling.top_p), scaled, -jnp.inf)
    token = invert(scaled, uniform)
    log_prob = select_log_probs(scaled[:, None], token[:, None])[:, 0]
    whole = sampling.temperature == 1 and not sampling.top_k and sampling.top_p == 1
    return token, log_prob, log_prob if whole else select_log_probs(logits[:, None], token[:, None])[:, 0]


def invert(logits: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the cumulative distribution exceeds `uniform`: never one whose logit is -inf.

    It finds the block of tokens first, then the token in that block: running sums over a whole vocabulary would take
    longer than the rest of `choose`.
    """
    B, V = logits.shape
    padded = jnp.pad(logits, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf).reshape(B, -1, BLOCK)
    most = jnp.max(padded, axis=(1, 2))
    of_blocks = jnp.cumsum(jnp.sum(jnp.exp(padded - most[:, None, None]), axis=-1), axis=-1)
    aim = _below(uniform * of_blocks[:, -1], of_blocks[:, -1])
    block = jnp.sum(of_blocks <= aim[:, None], axis=-1)
    before = jnp.take_along_axis(jnp.pad(of_blocks, ((0, 0), (1, 0))), block[:, None], axis=1)[:, 0]
    inside = jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]
    mass = jnp.cumsum(jnp.exp(inside - most[:, None]), axis=-1)
    return block * BLOCK + jnp.sum(mass <= _below(aim - before, mass[:, -1])[:, None], axis=-1)


def _below(aim: Float[Array, " B"], total: Float[Array, " B"]) -> Float[Array, " B"]:
    """`aim`, kept below the total despite rounding, so that the first sum to exceed it is at a token with mass."""
    return jnp.minimum(aim, jnp.nextafter(total, jnp.float32(0)))


def sample(
    config: ModelConfig,
    sampling: SamplingConfig,
    params: Params,
    prompts: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    keys: Key[Array, " R"],
    stops: Int[Array, "states V"],
    eos: int,
    pad: int,
    starts: Int[Array, " B"] | None = None,
) -> Samples:
    """n completions for each left-padded prompt, n = R / B; those of a prompt are adjacent.

    A prompt is read once and its cache repeated for its n samples. `stops` is a table of `candidates.stop`, `starts`
    the state in which each prompt's completions start, by default 0.
    """
    C, P = sampling.max_completion_length, prompts.shape[1]
    rows = keys.shape[0]
    n = rows // prompts.shape[0]
    params = in_compute_dtype(config, params)
    logits, caches = prefill(config, params, prompts, prompt_mask, C)
    logits, prompt_mask, caches = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), (logits, prompt_mask, caches))
    layers = unstack(config, params["layers"])
    length = jnp.sum(prompt_mask, axis=1)
    met = stops.shape[0] - 1

    def draw(t: Array, logits: Array, matched: Array, done: Array, out: Samples) -> tuple[Array, Array, Array, Samples]:
        uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t)))(keys)
        token, log_prob, raw = choose(sampling, logits, uniform)
        token = jnp.where(done, pad, token)
        matched = stops[matched, token]
        ends = ~done & ((token == eos) | (matched == met))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=t, axis=1)
        out = Samples(
            put(out.tokens, token[:, None]),
            put(out.mask, ~done[:, None]),
            put(out.log_probs, jnp.where(done, 0, log_prob)[:, None]),
            put(out.raw_log_probs, jnp.where(done, 0, raw)[:, None]),
            out.finished | ends,
        )
        return token, matched, done | ends, out

    def body(carry: tuple) -> tuple:
        t, token, matched, done, caches, out = carry
        # Outputs past a row's end are never read, so the cache needs no mask for finished rows.
        seen = jnp.concatenate([prompt_mask, jnp.broadcast_to(jnp.arange(C) < t, (rows, C))], axis=1)
        logits, caches = decode_step(config, params, layers, token, length + t - 1, seen, caches, P + t - 1)
        token, matched, done, out = draw(t, logits, matched, done, out)
        return t + 1, token, matched, done, caches, out

    out = Samples(
        jnp.full((rows, C), pad, jnp.int32),
        jnp.zeros((rows, C), bool),
        jnp.zeros((rows, C)),
        jnp.zeros((rows, C)),
        jnp.zeros(rows, bool),
    )
    start = jnp.zeros(rows, jnp.int32) if starts is None else jnp.repeat(starts, n)
    token, matched, done, out = draw(jnp.int32(0), logits, start, out.finished, out)
    carry = (jnp.int32(1), token, matched, done, caches, out)
    return jax.lax.while_loop(lambda c: (c[0] < C) & ~jnp.all(c[3]), body, carry)[-1]


@functools.cache
def make_sampler(
    config: ModelConfig, sampling: SamplingConfig, samples: int, eos: int, pad: int, mesh: Mesh
) -> Callable[..., Samples]:
    """The jitted sampler: (parameters, prompts, mask, key, problem ids, stop table) -> `samples` per prompt."""

    def draw(params: Params, prompts: Array, mask: Array, key: Array, problems: Array, stops: Array) -> Samples:
        params = constrain(params, mesh, DRAWING)
        return sample(config, sampling, params, prompts, mask, sample_keys(key, problems, samples), stops, eos, pad)

    everywhere, rows = replicated(mesh), by_row(mesh)
    return jax.jit(
        on_mesh(mesh, draw), in_shardings=(None, rows, rows, everywhere, rows, everywhere), out_shardings=rows
    )

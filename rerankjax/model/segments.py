"""Packed rows: which sequence each token belongs to, and attention that skips what no query of a block sees.

`attend_segments` is flash attention (arXiv 2307.08691) in loops of plain XLA, for CPUs. Its time grows with the lengths
of the sequences, not of the row, so a row may be long. It holds no [L, L] array.

Shapes: as in `decoder`; a row is n blocks of M tokens; X = G * M queries of a key head; N = B * n blocks of all rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.products import as_kept, product

SHORT = 128  # tokens of a row that attends faster as a whole
BLOCK = 64  # tokens, at most: in larger blocks more pairs are masked, smaller products are slower


class Segments(NamedTuple):
    """The sequence of its row to which each token belongs (0: padding), and the completion in it (0: the prompt).

    Without branches each sequence is one text. Tokens of a sequence, and of a completion, are neighbours.
    """

    sequence: Int[Array, "B L"]
    branch: Int[Array, "B L"] | None = None


def segments_mask(queries: Segments, keys: Segments) -> Bool[Array, "B L S"]:
    """Which keys each query sees, before the causal mask: those of its sequence, except those of other completions."""
    seen = queries.sequence[:, :, None] == keys.sequence[:, None, :]
    if queries.branch is None or keys.branch is None:
        return seen
    branch = keys.branch[:, None, :]
    return seen & ((branch == 0) | (branch == queries.branch[:, :, None]))


def attend_segments(
    q: Float[Array, "B H L E"], k: Float[Array, "B K L E"], v: Float[Array, "B K L E"], segments: Segments
) -> Float[Array, "B H L E"]:
    """Causal attention of each token to its sequence, with a float32 softmax; finite at padding."""
    length = q.shape[2]
    blocks = -(-length // BLOCK)
    padding = -length % blocks
    q, k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, padding), (0, 0))) for a in (q, k, v))
    segments = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, padding))), segments)
    return _attend(q, k, v, segments)[:, :, :length]


def needed_blocks(segments: Segments, blocks: int) -> tuple[Int[Array, "B n n"], Int[Array, "B n"]]:
    """For each block of queries, the blocks of keys, those of which it sees any first; and how many those are."""
    sequence, branch = segments
    starts = sequence[:, 1:] != sequence[:, :-1]
    number = _count(starts)  # of the sequence, or of the completion or prompt: both ascend along a row
    own = number if branch is None else _count(starts | (branch[:, 1:] != branch[:, :-1]))

    def of_blocks(a: Array) -> Array:
        return a.reshape(a.shape[0], blocks, -1)

    need = of_blocks(own).max(2)[:, None, :] >= of_blocks(own).min(2)[:, :, None]
    if branch is not None:
        prompt = of_blocks(jnp.where(branch == 0, number, -1)).max(2)
        need |= prompt[:, None, :] >= of_blocks(number).min(2)[:, :, None]
    real = (of_blocks(sequence).max(2) > 0)[:, :, None]  # a block of padding needs itself only
    need &= jnp.tril(jnp.ones((1, blocks, blocks), bool)) & (real | jnp.eye(blocks, dtype=bool)[None])
    return jnp.argsort(~need, axis=2, stable=True), need.sum(2)


def _count(starts: Bool[Array, "B l"]) -> Int[Array, "B L"]:
    """How many starts there are up to each token, of which the first is none."""
    return jnp.cumsum(jnp.pad(starts, ((0, 0), (1, 0))), axis=1)


class _Task(NamedTuple):
    """A block of queries of a row. The first `needed` of `keys` are the blocks of keys that it sees."""

    row: Int[Array, " N"]
    queries: Int[Array, " N"]
    keys: Int[Array, "N n"]
    needed: Int[Array, " N"]


def _tasks(segments: Segments, blocks: int) -> _Task:
    keys, needed = needed_blocks(segments, blocks)
    row, queries = jnp.divmod(jnp.arange(needed.size), blocks)
    return _Task(row, queries, keys.reshape(-1, blocks), needed.ravel())


def _tiles(q: Float[Array, "B H L E"], heads: int, blocks: int) -> Float[Array, "N K X E"]:
    B, H, L, E = q.shape
    q = q.reshape(B, heads, H // heads, blocks, L // blocks, E).transpose(0, 3, 1, 2, 4, 5)
    return q.reshape(B * blocks, heads, -1, E)


def _rows(tiles: Float[Array, "N K X E"], heads: int, blocks: int) -> Float[Array, "B H L E"]:
    N, K, _, E = tiles.shape
    rows = tiles.reshape(N // blocks, blocks, K, heads // K, -1, E).transpose(0, 2, 3, 1, 4, 5)
    return rows.reshape(N // blocks, heads, -1, E)


def _part(a: Float[Array, "B K L E"], row: Array, block: Array, size: int) -> Float[Array, "K M E"]:
    return jax.lax.dynamic_slice(a, (row, 0, block * size, 0), (1, a.shape[1], size, a.shape[3]))[0]


def _seen(segments: Segments, task: _Task, block: Array, size: int) -> Bool[Array, "M M"]:
    """Which keys of `block`, in columns, the queries of the task see, in rows."""

    def of(which: Array) -> Segments:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice(a, (task.row, which * size), (1, size)), segments)

    here = jnp.arange(size)
    causal = (task.queries * size + here)[:, None] >= (block * size + here)[None, :]
    return causal & segments_mask(of(task.queries), of(block))[0]


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, segments: Segments) -> Array:
    return _forward(q, k, v, segments)[0]


def _forward(q: Array, k: Array, v: Array, segments: Segments) -> tuple[Array, tuple[Any, ...]]:
    """The result, and what its gradient needs; of the weights, the logarithms of their sums, [N, K, X]."""
    (_, H, L, E), K = q.shape, k.shape[1]
    blocks = -(-L // BLOCK)
    size = L // blocks

    def block_of_queries(_: None, at: tuple[Array, _Task]) -> tuple[None, tuple[Array, Array]]:
        q_KxXxE, task = at

        def block_of_keys(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, mean = so_far
            block = task.keys[i]
            logits = product("kxe,kse->kxs", q_KxXxE, _part(k, task.row, block, size)).astype(jnp.float32) * E**-0.5
            seen = _seen(segments, task, block, size)[None, None]
            logits = jnp.where(seen, logits.reshape(K, -1, size, size), jnp.finfo(jnp.float32).min)
            logits = logits.reshape(K, -1, size)
            new = jnp.maximum(top, logits.max(2))
            weights, scale = jnp.exp(logits - new[:, :, None]), jnp.exp(top - new)
            of_block = product("kxs,kse->kxe", weights.astype(v.dtype), _part(v, task.row, block, size))
            return new, total * scale + weights.sum(2), mean * scale[:, :, None] + of_block.astype(jnp.float32)

        none = jnp.zeros(q_KxXxE.shape[:2])
        start = none + jnp.finfo(jnp.float32).min, none, jnp.zeros(q_KxXxE.shape)
        top, total, mean = jax.lax.fori_loop(0, task.needed, block_of_keys, start)
        return None, ((mean / total[:, :, None]).astype(q.dtype), top + jnp.log(total))

    _, (tiles, log_total) = jax.lax.scan(block_of_queries, None, (_tiles(q, K, blocks), _tasks(segments, blocks)))
    y, log_total = as_kept(_rows(tiles, H, blocks)), as_kept(log_total)
    return y, (q, k, v, segments, y, log_total)


def _backward(kept: tuple[Any, ...], of_y: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segments, y, log_total = kept
    (_, H, L, E), K = q.shape, k.shape[1]
    blocks = -(-L // BLOCK)
    size = L // blocks
    of_totals = jnp.sum(of_y.astype(jnp.float32) * y.astype(jnp.float32), axis=3, keepdims=True)

    def block_of_queries(of_keys: tuple[Array, Array], at: tuple[Any, ...]) -> tuple[tuple[Array, Array], Array]:
        q_KxXxE, of_y_KxXxE, of_total, log_total, task = at

        # Products have keys first: their summed axes are then last, where they need to be (`products`).
        def block_of_keys(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            of_q, of_k, of_v = so_far
            block = task.keys[i]
            key, value = (_part(a, task.row, block, size) for a in (k, v))
            logits = product("kse,kxe->ksx", key, q_KxXxE).astype(jnp.float32) * E**-0.5
            seen = _seen(segments, task, block, size).T[None, :, None]
            weights = jnp.exp(logits - log_total[:, None]).reshape(K, size, -1, size)
            weights = jnp.where(seen, weights, 0.0).reshape(logits.shape)
            of_weights = product("kse,kxe->ksx", value, of_y_KxXxE).astype(jnp.float32)
            of_logits = (weights * (of_weights - of_total[:, None, :, 0]) * E**-0.5).astype(q.dtype)

            def add(total: Array, part: Array) -> Array:
                part = _part(total, task.row, block, size) + part.astype(jnp.float32)
                return jax.lax.dynamic_update_slice(total, part[None], (task.row, 0, block * size, 0))

            return (
                of_q + product("ksx,kse->kxe", of_logits, key).astype(jnp.float32),
                add(of_k, product("ksx,kxe->kse", of_logits, q_KxXxE)),
                add(of_v, product("ksx,kxe->kse", weights.astype(v.dtype), of_y_KxXxE)),
            )

        of_q, *of_keys_new = jax.lax.fori_loop(0, task.needed, block_of_keys, (jnp.zeros(q_KxXxE.shape), *of_keys))
        return tuple(of_keys_new), of_q.astype(q.dtype)

    tiles = (_tiles(a, K, blocks) for a in (q, of_y, of_totals))
    none = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (of_k, of_v), of_q = jax.lax.scan(block_of_queries, none, (*tiles, log_total, _tasks(segments, blocks)))
    return _rows(of_q, H, blocks), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)

"""Grouped-query attention (arXiv 2305.13245), of whole rows and of tokens behind a cache.

Whole rows (training, scoring, a prompt's prefill) attend by the kernel that `ModelConfig.attention` names: cuDNN's on a
GPU, splash on a TPU, plain XLA elsewhere: `segments` for packed rows on a CPU, blocks of `attend` for others. The
kernels agree at real tokens; outputs at pad tokens are unused.
Single tokens, and rows behind a prefix that they share, have small products of another shape, and are left to XLA.

Shapes: as in `decoder`; R prompts of P tokens, each shared by B // R rows.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.products import product
from rerankjax.model.segments import SHORT, Segments, attend_segments, segments_mask
from rerankjax.model.sharding import RULES, dividing, split_by_hand

BLOCK, MOST_BLOCKS = 128, 16  # of queries: tokens in a block, at least; and blocks, at most
LANES, SPLASH_BLOCK = 128, 512  # of splash: a block has a multiple of LANES tokens, at most SPLASH_BLOCK
CUDNN_DTYPES, CUDNN_HEAD_DIM = (jnp.bfloat16, jnp.float16), 128  # the largest that GPUs before Hopper also support
FASTEST = {"gpu": "cudnn", "tpu": "splash", "cpu": "skip"}  # by JAX's backend; "xla" on others
BATCH_AXES, HEAD_AXES = RULES.batch, RULES.heads + RULES.length  # of the mesh; an axis may be missing


class Prefix(NamedTuple):
    """Keys and values of one layer that n neighbouring rows share: R prompts, B = R * n rows."""

    keys: Float[Array, "R K P E"]
    values: Float[Array, "R K P E"]
    mask: Bool[Array, "R P"]


def attend(
    q: Float[Array, "B H L E"], k: Float[Array, "B K S E"], v: Float[Array, "B K S E"], mask: Bool[Array, "B L S"]
) -> Float[Array, "B H L E"]:
    """Grouped-query attention with a float32 softmax. A query that sees no key gets a mean of values, never NaN."""
    B, H, L, E = q.shape
    q = q.reshape(B, k.shape[1], -1, L, E)
    logits = product("bkgle,bkse->bkgls", q, k) * E**-0.5
    logits = jnp.where(mask[:, None, None], logits.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return product("bkgls,bkse->bkgle", weights, v).reshape(B, H, L, E)


def pick(attention: str, dtype: jnp.dtype, head_dim: int) -> str:
    """The kernel for `ModelConfig.attention` and such queries, keys and values: "xla", "skip", "splash" or "cudnn".

    "auto" goes by `jax.default_backend()`; a program compiled ahead of time for other devices must name its kernel.
    cuDNN's kernel supports no float32, and only head sizes that are multiples of 8 up to 128. Others go to XLA, even if
    cuDNN is named.
    """
    kernel = FASTEST.get(jax.default_backend(), "xla") if attention == "auto" else attention
    if kernel == "cudnn" and (dtype not in CUDNN_DTYPES or head_dim % 8 or head_dim > CUDNN_HEAD_DIM):
        return "xla"
    return kernel


def skips(attention: str) -> bool:
    """Whether packed rows attend by `attend_segments`, whose time does not grow with the length of a row."""
    return pick(attention, jnp.dtype(jnp.float32), 0) == "skip"


def attend_causal(
    q: Float[Array, "B H L E"],
    k: Float[Array, "B K L E"],
    v: Float[Array, "B K L E"],
    mask: Bool[Array, "B L"] | Segments,
    attention: str = "auto",
) -> Float[Array, "B H L E"]:
    """`attend` to real tokens up to each query's own, by the kernel that `pick` gives; finite at pad tokens.

    With `Segments`, a query sees only its own sequence: splash supports that without branches, otherwise XLA does it.
    """
    kernel = pick(attention, jnp.result_type(q, k, v), q.shape[-1])
    if isinstance(mask, Segments):
        if kernel == "skip" and q.shape[2] > SHORT:
            return on_each_device(attend_segments, q, k, v, mask)
        if kernel == "splash" and mask.branch is None:
            return on_each_device(attend_splash, q, k, v, mask.sequence)
    elif kernel in ("splash", "cudnn"):
        return on_each_device(attend_splash if kernel == "splash" else attend_cudnn, q, k, v, mask)
    return attend_blocks(q, k, v, mask)


def on_each_device(
    kernel: Callable[..., Array],
    q: Float[Array, "B H L E"],
    k: Float[Array, "B K L E"],
    v: Float[Array, "B K L E"],
    mask: Bool[Array, "B L"] | Int[Array, "B L"] | Segments,
) -> Float[Array, "B H L E"]:
    """A kernel, which XLA cannot split, on each device's rows and heads, where there is a mesh (`jax.set_mesh`).

    Rows are split over data and fsdp. Heads are split over tensor, and over sequence: a device that held a part of each
    row for all heads now holds whole rows for a part of the heads (arXiv 2309.14509). Devices along an axis that does
    not divide the rows or heads do the same work.
    """

    def split(mesh: AbstractMesh) -> tuple[tuple[PartitionSpec, ...], PartitionSpec]:
        rows = dividing(mesh, BATCH_AXES, q.shape[0])
        spec = PartitionSpec(rows, dividing(mesh, HEAD_AXES, k.shape[1]))
        return (spec, spec, spec, PartitionSpec(rows)), spec

    return split_by_hand(kernel, (q, k, v, mask), split)


def attend_blocks(
    q: Float[Array, "B H L E"],
    k: Float[Array, "B K L E"],
    v: Float[Array, "B K L E"],
    mask: Bool[Array, "B L"] | Segments,
) -> Float[Array, "B H L E"]:
    """`attend` to real tokens up to each query's own, a block of queries at a time: half of the products, which a mask
    would discard, are never computed, and the gradient recomputes a block's weights instead of keeping all of them."""
    length = q.shape[2]
    width = max(BLOCK, -(-length // MOST_BLOCKS))

    def block(q: Array, k: Array, v: Array, queries: Any, keys: Any) -> Array:
        L, S = q.shape[2], k.shape[2]
        seen = segments_mask(queries, keys) if isinstance(keys, Segments) else keys[:, None, :]
        return attend(q, k, v, jnp.tril(jnp.ones((1, L, S), bool), S - L) & seen)

    if length <= width:
        return block(q, k, v, mask, mask)
    remade = jax.checkpoint(block)
    blocks = []
    for start, end in itertools.pairwise([*range(0, length, width), length]):
        queries, keys = (jax.tree.map(lambda a, s=s: a[:, s], mask) for s in (slice(start, end), slice(0, end)))
        blocks.append(remade(q[:, :, start:end], k[:, :, :end], v[:, :, :end], queries, keys))
    return jnp.concatenate(blocks, axis=2)


def attend_splash(
    q: Float[Array, "B H L E"],
    k: Float[Array, "B K L E"],
    v: Float[Array, "B K L E"],
    segments: Bool[Array, "B L"] | Int[Array, "B L"],
) -> Float[Array, "B H L E"]:
    """Causal attention by JAX's TPU kernel, which holds no [L, L] array; interpreted, and slow, on other devices.

    Tokens see those of their own segment. Pad tokens form one segment: they see each other, so no softmax is empty.
    """
    # Here, because Pallas takes a while to import and CPUs and GPUs have no use for it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    H, L, E = q.shape[1:]
    padding = -L % LANES
    block = math.gcd(L + padding, SPLASH_BLOCK)
    of_length = ((0, 0), (0, 0), (0, padding), (0, 0))
    q, k, v = jnp.pad(q * E**-0.5, of_length), jnp.pad(k, of_length), jnp.pad(v, of_length)  # splash does not scale
    segments = jnp.pad(segments, ((0, 0), (0, padding))).astype(jnp.int32)

    def run(interpret: bool, q: Array, k: Array, v: Array, segments: Array) -> Array:
        causal = splash_attention_mask.CausalMask((L + padding, L + padding))
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            splash_attention_mask.MultiHeadMask([causal] * H),
            block_sizes=splash_attention_kernel.BlockSizes(*(block,) * 8),
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, splash_attention_kernel.SegmentIds(segments, segments))

    # Chosen by the platform that the program is compiled for, which need not be the one it is traced on.
    run_on = {"tpu": functools.partial(run, False), "default": functools.partial(run, True)}
    return jax.lax.platform_dependent(q, k, v, segments, **run_on)[:, :, :L]


def attend_cudnn(
    q: Float[Array, "B H L E"], k: Float[Array, "B K L E"], v: Float[Array, "B K L E"], mask: Bool[Array, "B L"]
) -> Float[Array, "B H L E"]:
    """Causal attention by cuDNN, which holds no [L, L] array: float16 and bfloat16 only.

    cuDNN takes padding only as lengths, and a mask only as a bias [B, H, L, L]. So real tokens are moved to the front,
    in their order, and their outputs are moved back.
    """
    B, L = mask.shape
    rows, order = jnp.arange(B)[:, None], jnp.argsort(~mask, axis=1, stable=True)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)  # a softmax over nothing would be NaN
    real = (jnp.arange(L)[None] < lengths[:, None])[..., None, None]

    def move(x: Array, to: Array) -> Array:
        return x.at[rows, to].get(unique_indices=True, mode="promise_in_bounds")

    def front(x: Array) -> Array:
        # Zeros at pad tokens stop the gradient there, for which cuDNN guarantees nothing.
        return jnp.where(real, move(x.swapaxes(1, 2), order), 0)

    y = jax.nn.dot_product_attention(
        front(q),
        front(k),
        front(v),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return move(jnp.where(real, y, 0), jnp.argsort(order, axis=1)).swapaxes(1, 2)


def attend_shared(
    q: Float[Array, "B H L E"],
    k: Float[Array, "B K S E"],
    v: Float[Array, "B K S E"],
    mask: Bool[Array, "B L S"],
    prefix: Prefix,
) -> Float[Array, "B H L E"]:
    """`attend` over a prefix and a row's own keys behind it: the prefix is read once for all rows that share it."""
    B, H, L, E = q.shape
    R, K, P, _ = prefix.keys.shape
    q = q.reshape(B, K, -1, E)
    q_RxKxXxE = q.reshape(R, B // R, K, -1, E).swapaxes(1, 2).reshape(R, K, -1, E)
    shared = product("rkxe,rkpe->rkxp", q_RxKxXxE, prefix.keys).reshape(R, K, B // R, -1, P)
    shared = jnp.where(prefix.mask[:, None, None, None], shared, jnp.finfo(shared.dtype).min)
    own = product("bkxe,bkse->bkxs", q, k).reshape(B, K, -1, L, k.shape[2])
    own = jnp.where(mask[:, None, None], own, jnp.finfo(own.dtype).min)
    logits = jnp.concatenate([shared.swapaxes(1, 2).reshape(B, K, -1, P), own.reshape(B, K, -1, k.shape[2])], axis=-1)
    weights = jax.nn.softmax(logits.astype(jnp.float32) * E**-0.5, axis=-1).astype(v.dtype)
    of_prefix = weights[..., :P].reshape(R, B // R, K, -1, P).swapaxes(1, 2).reshape(R, K, -1, P)
    of_prefix = product("rkxp,rkpe->rkxe", of_prefix, prefix.values).reshape(R, K, B // R, -1, E).swapaxes(1, 2)
    of_own = product("bkxs,bkse->bkxe", weights[..., P:], v)
    return (of_prefix.reshape(of_own.shape) + of_own).reshape(B, H, L, E)

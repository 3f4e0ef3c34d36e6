"""A Llama-family decoder: RoPE, RMSNorm, SwiGLU, grouped-query attention (arXiv 2302.13971, 2305.13245).

Qwen2 (2407.10671) adds biases to it, Qwen3 (2505.09388) norms of queries and keys; `ModelConfig` says which. Where a
layer's parameters hold low-rank adapters beside a kernel (`lora.attach`), their output is added to the kernel's.

Shapes: B batch, L query length, S key length, D hidden size, H query heads, K key/value heads, G = H // K, E head dim,
N layers, V vocabulary. The layers' parameters are stacked on a leading axis of N and scanned over, so that compile time
does not grow with depth; `decode_step` walks them one by one, because a scan would copy the whole cache every token.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rerankjax.model.attention import Prefix, attend, attend_causal, attend_shared
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.packing import Packed
from rerankjax.model.products import KEPT, keep, look_up, product
from rerankjax.model.segments import Segments
from rerankjax.model.sharding import constrain_rows

Params = Any  # a pytree of arrays, as flax.linen's init returns under "params"


class Cache(NamedTuple):
    """Keys and values of one layer, already rotated."""

    keys: Float[Array, "B K S E"]
    values: Float[Array, "B K S E"]


def positions_of(mask: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """A token's position is the number of real tokens before it, so padding on the left shifts nothing."""
    return jnp.cumsum(mask, axis=1) - mask.astype(jnp.int32)


def scale_frequency(frequency: Float[Array, " F"], scaling: RopeScaling) -> Float[Array, " F"]:
    """RoPE's frequencies (radians a token) for a longer context."""
    if scaling.rope_type == "default":
        return frequency
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor)


class Rotation(NamedTuple):
    """The cosines and sines of RoPE's angles at each token, which all layers share."""

    cos: Float[Array, "B 1 L F"]
    sin: Float[Array, "B 1 L F"]


def rotation_at(config: ModelConfig, positions: Int[Array, "B L"]) -> Rotation:
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    frequency = scale_frequency(frequency, config.rope_scaling)
    angle_BxLxF = positions[:, None, :, None].astype(jnp.float32) * frequency[None, None, None]
    return Rotation(jnp.cos(angle_BxLxF), jnp.sin(angle_BxLxF))


def rotate(x: Float[Array, "B X L E"], by: Rotation) -> Float[Array, "B X L E"]:
    """Rotary position embedding in the half-split layout of Hugging Face's Llama (arXiv 2104.09864)."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * by.cos - x2 * by.sin, x2 * by.cos + x1 * by.sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        y = (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)).astype(x.dtype)
        return y * jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))


@jax.custom_vjp
def swiglu(gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """silu(gate) * up (arXiv 2002.05202), computed in float32 and rounded once; its gradient keeps gate and up only.

    In bfloat16, XLA on a CPU would round after each operation, which takes most of the time.
    """
    gate32 = gate.astype(jnp.float32)
    return (gate32 * jax.nn.sigmoid(gate32) * up.astype(jnp.float32)).astype(gate.dtype)


def _swiglu(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_gradient(operands: tuple[Array, Array], of_result: Array) -> tuple[Array, Array]:
    gate, up, of_result = (a.astype(jnp.float32) for a in (*operands, of_result))
    sigmoid = jax.nn.sigmoid(gate)
    of_gate = of_result * up * sigmoid * (1 + gate * (1 - sigmoid))
    return of_gate.astype(operands[0].dtype), (of_result * gate * sigmoid).astype(operands[1].dtype)


swiglu.defvjp(_swiglu, _swiglu_gradient)


class Linear(nn.Module):
    """x @ kernel (+ bias), as in nn.Dense, plus (x @ lora_a) @ lora_b if the parameters hold these.

    Parameters are rounded to the activations' type here, one layer at a time: the loop over layers then collects their
    gradients in the parameters' own type. XLA on a CPU would convert a stack of bfloat16 gradients as a whole, to
    float32 and back, for each layer that it adds.
    """

    features: int
    use_bias: bool = False
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L F"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        y = product("bld,df->blf", x, kernel.astype(x.dtype))
        if bias is not None:
            y = y + bias.astype(x.dtype)[None, None]
        if self.has_variable("params", "lora_a"):
            a: Array = self.get_variable("params", "lora_a").astype(x.dtype)
            b: Array = self.get_variable("params", "lora_b").astype(x.dtype)
            y = y + product("blr,rf->blf", product("bld,dr->blr", x, a), b)
        return keep(y)


class Block(nn.Module):
    """One layer. With a cache, keys and values are written into it at `start`, and attended with the rest.

    `mask` [B, L, S] says which keys each query sees. `mask` [B, L] says which tokens are real: a query then sees the
    real tokens up to itself. `Segments` say to which sequence of its row each token belongs.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        rotation: Rotation,
        mask: Bool[Array, "B L S"] | Bool[Array, "B L"] | Segments,
        cache: Cache | None = None,
        start: Int[Array, ""] | int = 0,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache]:
        c = self.config
        x = constrain_rows(x)

        def project(name: str, heads: int, y: Array) -> Array:
            y = Linear(heads * c.head_dim, c.qkv_bias, name=name)(y)
            return y.reshape(*y.shape[:2], heads, c.head_dim).swapaxes(1, 2)

        def place(name: str, y: Array) -> Array:
            y = RMSNorm(c.rms_norm_eps, name=name)(y) if c.qk_norm else y
            return rotate(y, rotation)

        y = RMSNorm(c.rms_norm_eps, name="input_layernorm")(x)
        q = place("q_norm", project("q_proj", c.num_attention_heads, y))
        k = place("k_norm", project("k_proj", c.num_key_value_heads, y))
        v = project("v_proj", c.num_key_value_heads, y)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache.keys, k, start, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache.values, v, start, axis=2)
        if isinstance(mask, Segments) or mask.ndim == 2:
            y = attend_causal(q, k, v, mask, c.attention)
        else:
            y = attend(q, k, v, mask) if prefix is None else attend_shared(q, k, v, mask, prefix)
        y = y.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        x = x + Linear(c.hidden_size, c.attention_bias, name="o_proj")(y)

        y = RMSNorm(c.rms_norm_eps, name="post_attention_layernorm")(x)
        gate, up = (Linear(c.intermediate_size, name=name)(y) for name in ("gate_proj", "up_proj"))
        return x + Linear(c.hidden_size, name="down_proj")(swiglu(gate, up)), Cache(k, v)


class Decoder(nn.Module):
    """Maps token ids to final hidden states; `logits`, which few positions need, maps these to the vocabulary."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embed_tokens = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=init)
        self.layers = nn.scan(
            Block if c.remat == "none" else nn.remat(Block, prevent_cse=False, policy=_kept(c)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.num_hidden_layers,
            unroll=c.unroll,
        )(c)
        self.norm = RMSNorm(c.rms_norm_eps)
        if not c.tie_word_embeddings:
            self.lm_head = Linear(c.vocab_size, kernel_init=init)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        mask: Bool[Array, "B L"] | Segments,
        positions: Int[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Cache]:
        """Hidden states and every layer's keys and values (stacked over layers), for rows padded on either side.

        positions: each token's position in its sequence, if sequences are packed; otherwise they follow from the mask.
        """
        if positions is None:
            assert not isinstance(mask, Segments)
            positions = positions_of(mask)
        x = self.embed(tokens)
        x, cache = self.layers(x, rotation_at(self.config, positions), mask)
        return self.norm(x), cache

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        x = look_up(self.embed_tokens.embedding, tokens)
        return x.astype(self.config.compute_dtype) if self.config.compute_dtype else x

    def logits(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        if self.config.tie_word_embeddings:
            return product("bld,vd->blv", hidden, self.embed_tokens.embedding.astype(hidden.dtype))
        return self.lm_head(hidden)

    def initialise(self, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L V"]:
        """Touches every parameter: what `init` traces."""
        return self.logits(self(tokens, mask)[0])


def _kept(config: ModelConfig) -> Any:
    """The policy for what `config.remat` keeps of a layer for the gradient, besides the layer's input."""
    return jax.checkpoint_policies.save_only_these_names(KEPT) if config.remat == "dots" else None


def in_compute_dtype(config: ModelConfig, params: Params) -> Params:
    """The parameters rounded to the type in which products are computed, once for many tokens that are drawn."""
    return jax.tree.map(lambda a: a.astype(config.compute_dtype), params) if config.compute_dtype else params


def init_decoder(config: ModelConfig, key: Array) -> Params:
    """Random float32 parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return Decoder(config).init(key, tokens, tokens == 0, method=Decoder.initialise)["params"]


def hidden_states(
    config: ModelConfig, params: Params, tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B L D"]:
    return Decoder(config).apply({"params": params}, tokens, mask)[0]


def packed_hidden_states(config: ModelConfig, params: Params, packed: Packed) -> Float[Array, "B L D"]:
    """The hidden states of packed sequences."""
    segments = Segments(packed.sequence, packed.branch)
    return Decoder(config).apply({"params": params}, packed.tokens, segments, packed.positions)[0]


def _apply(module: nn.Module, params: Params, *arguments: Any, method: Callable[..., Any] | None = None) -> Any:
    """What the module's method, `__call__` if None, returns with these parameters."""
    return module.apply({"params": params}, *arguments, method=method)


def to_logits(config: ModelConfig, params: Params, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
    return _apply(Decoder(config), params, hidden, method=Decoder.logits)


def prefill(
    config: ModelConfig, params: Params, tokens: Int[Array, "B P"], mask: Bool[Array, "B P"], new_tokens: int
) -> tuple[Float[Array, "B V"], tuple[Cache, ...]]:
    """The logits that follow left-padded prompts, and a cache for each layer with room for `new_tokens` more."""
    hidden, stacked = _apply(Decoder(config), params, tokens, mask)
    roomy = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * 3 + ((0, new_tokens), (0, 0))), stacked)
    return to_logits(config, params, hidden[:, -1:])[:, 0], unstack(config, roomy)


def decode_step(
    config: ModelConfig,
    params: Params,
    layers: tuple[Params, ...],
    tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    seen: Bool[Array, "B S"],
    caches: tuple[Cache, ...],
    slot: Int[Array, ""],
    prefixes: tuple[Prefix, ...] | None = None,
) -> tuple[Float[Array, "B V"], tuple[Cache, ...]]:
    """One more token for each row: it is written into the caches at `slot` and attends to the cached keys in `seen`.

    With `prefixes`, the caches hold only the tokens behind the prefixes.
    """
    x = _apply(Decoder(config), params, tokens[:, None], method=Decoder.embed)
    # A loop over steps computes the table once. Without it, XLA on a CPU computes sines and cosines in each layer.
    places = jnp.arange(seen.shape[1] + (prefixes[0].mask.shape[1] if prefixes else 0))
    table = rotation_at(config, places[None])
    rotation, new = Rotation(*(a[0, 0, positions][:, None, None] for a in table)), []
    for layer, cache, prefix in zip(layers, caches, prefixes or (None,) * len(layers), strict=True):
        x, cache = _apply(Block(config), layer, x, rotation, seen[:, None], cache, slot, prefix)
        new.append(cache)
    x = _apply(Decoder(config), params, x, method=lambda m, h: m.norm(h))
    return to_logits(config, params, x)[:, 0], tuple(new)


def unstack(config: ModelConfig, stacked: Any) -> tuple[Any, ...]:
    """The stacked arrays of the scan over layers, layer by layer, for `decode_step`."""
    return tuple(jax.tree.map(operator.itemgetter(i), stacked) for i in range(config.num_hidden_layers))

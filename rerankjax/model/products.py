"""Products and look-ups, and what of them is kept for the gradient, as fast as the device can."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

KEPT = "kept"  # the name of what a policy of `jax.checkpoint` may keep for the gradient
BFLOAT16_UNITS = {"amx_bf16", "avx512_bf16"}  # as Linux calls them; XLA computes other CPUs' bfloat16 in float32


def fastest_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The `ModelConfig.compute_dtype` that JAX's backend computes fastest: "bfloat16", or "", the parameters' own, on a
    CPU without units for it. cpuinfo: Linux's description of the CPU; without that file, the CPU is taken to have none.
    """
    if jax.default_backend() != "cpu":
        return "bfloat16"
    known = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return "bfloat16" if known & BFLOAT16_UNITS else ""


def product(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, y)`, in the operands' type.

    spec: "axes,axes->axes" without an ellipsis; each axis of an operand is one of the other operand's or the result's.

    On a CPU, products of bfloat16 and those of their gradients end in float32 and are then rounded: XLA's compiler uses
    the processor's bfloat16 units (AMX, AVX512-BF16) only for these, and computes others in float32, from copies. On a
    TPU or GPU products are einsum's own, so that devices exchange bfloat16.
    """
    return _product(spec, x, y) if x.dtype == y.dtype else jnp.einsum(spec, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, x: Array, y: Array) -> Array:
    einsum = functools.partial(jnp.einsum, spec)
    if x.dtype != jnp.bfloat16:
        return einsum(x, y)
    return jax.lax.platform_dependent(x, y, cpu=functools.partial(_on_cpu, spec), default=einsum)


def _on_cpu(spec: str, x: Array, y: Array) -> Array:
    of_x, of_y, of_result = _axes(spec)
    moved = "".join(sorted(of_x, key=lambda axis: axis not in of_result))  # the summed axes last
    if moved != of_x:
        # The compiler needs the first operand with its summed axes last; it would undo a transpose of numbers.
        x = _as_bits(lambda bits: bits.transpose([of_x.index(axis) for axis in moved]), x)
    return jnp.einsum(f"{moved},{of_y}->{of_result}", x, y, preferred_element_type=jnp.float32).astype(x.dtype)


def _as_bits(move: Callable[[Array], Array], x: Array) -> Array:
    """`move(x)` of bfloat16 numbers, which it only moves, as bits: XLA on a CPU moves those without a conversion."""
    return jax.lax.bitcast_convert_type(move(jax.lax.bitcast_convert_type(x, jnp.uint16)), x.dtype)


def _axes(spec: str) -> list[str]:
    """The axes of both operands and of the result."""
    return spec.replace("->", ",").split(",")


def _forward(spec: str, x: Any, y: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    """The product, and of x and y what the other's gradient needs, if that is asked for."""
    kept = x.value if y.perturbed else None, y.value if x.perturbed else None
    return _product(spec, x.value, y.value), kept


def _backward(
    spec: str, operands: tuple[Array | None, Array | None], gradient: Array
) -> tuple[Array | None, Array | None]:
    x, y = operands
    of_x, of_y, of_result = _axes(spec)
    return (
        None if y is None else _product(f"{of_result},{of_y}->{of_x}", gradient, y),
        None if x is None else _smaller_first((of_x, x), (of_result, gradient), of_y),
    )


def _smaller_first(x: tuple[str, Array], y: tuple[str, Array], of_result: str) -> Array:
    """The product of two arrays with their axes. XLA on a CPU copies the first operand, to have its summed axes last,
    and computes its elements again on the way, across rows; so the smaller operand is first."""
    (of_x, x_array), (of_y, y_array) = sorted((x, y), key=lambda operand: operand[1].size)
    # einsum swaps its operands, if the result's axes are in the order of the second and the first.
    order = "".join(sorted(of_result, key=lambda axis: 2 * (axis not in of_x) + (axis not in of_y)))
    return _product(f"{of_x},{of_y}->{order}", x_array, y_array).transpose([order.index(axis) for axis in of_result])


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def look_up(table: Float[Array, "V D"], indices: Int[Array, "..."]) -> Float[Array, "... D"]:
    """`table[indices]`. On a CPU it copies bfloat16 as bits: XLA would first convert the whole table to float32."""
    return _look_up(table, indices) if table.dtype == jnp.bfloat16 else table[indices]


@jax.custom_vjp
def _look_up(table: Array, indices: Array) -> Array:
    def as_bits(table: Array, indices: Array) -> Array:
        return _as_bits(lambda bits: bits[indices], table)

    return jax.lax.platform_dependent(table, indices, cpu=as_bits, default=lambda table, indices: table[indices])


def _looked_up(table: Array, indices: Array) -> tuple[Array, tuple[Array, Array]]:
    return _look_up(table, indices), (table, indices)


def _into_table(looked_up: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table, indices = looked_up
    return jax.vjp(lambda table: table[indices], table)[1](gradient)[0], None


_look_up.defvjp(_looked_up, _into_table)


@jax.custom_vjp
def keep(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """y, which is kept for the gradient where a policy of `jax.checkpoint` saves `KEPT`."""
    return y


def as_kept(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """y, marked as `KEPT`, for a function with a gradient of its own. bfloat16 is kept as bits: XLA on a CPU converts a
    stack of bfloat16 arrays to float32 and back for each layer that it adds, and keeps it as float32."""
    mark = functools.partial(checkpoint_name, name=KEPT)
    return _as_bits(mark, y) if y.dtype == jnp.bfloat16 else mark(y)


keep.defvjp(lambda y: (as_kept(y), None), lambda _, gradient: (gradient,))

"""Products in bfloat16: that they and their gradients are those of float32, rounded once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.model.products import fastest_dtype, look_up, product

SIZES = {"b": 2, "l": 40, "d": 48, "f": 64, "r": 4, "v": 300, "k": 3, "g": 2, "e": 16, "s": 56}
SPECS = (
    "bld,df->blf",
    "bld,dr->blr",
    "bld,vd->blv",
    "bkgle,bkse->bkgls",
    "bkgls,bkse->bkgle",
)


def operands(spec):
    shapes = [[SIZES[axis] for axis in axes] for axes in spec.split("->")[0].split(",")]
    return [jax.random.normal(jax.random.key(i), shape).astype(jnp.bfloat16) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_and_its_gradients_are_float32s_rounded_once(spec):
    x, y = operands(spec)
    result, pull = jax.vjp(lambda x, y: product(spec, x, y), x, y)
    weight = jax.random.normal(jax.random.key(2), result.shape).astype(jnp.bfloat16)
    exact, exact_pull = jax.vjp(lambda x, y: jnp.einsum(spec, x, y), x.astype(jnp.float32), y.astype(jnp.float32))
    found = jax.jit(lambda x, y: product(spec, x, y))(x, y), *jax.jit(pull)(weight)
    for ours, expected in zip(found, (exact, *exact_pull(weight.astype(jnp.float32))), strict=True):
        assert ours.dtype == jnp.bfloat16
        largest = float(jnp.abs(expected).max())
        # Half of bfloat16's spacing of 2**-7, and float32's own order of adding.
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5 * largest)


@pytest.mark.parametrize("spec", SPECS)
def test_a_float32_product_and_its_gradients_are_einsums(spec):
    x, y = (a.astype(jnp.float32) for a in operands(spec))
    result, pull = jax.vjp(lambda x, y: product(spec, x, y), x, y)
    expected, expected_pull = jax.vjp(lambda x, y: jnp.einsum(spec, x, y), x, y)
    np.testing.assert_array_equal(result, expected)
    for ours, einsums in zip(pull(result), expected_pull(result), strict=True):
        np.testing.assert_allclose(ours, einsums, rtol=1e-5, atol=1e-5 * float(jnp.abs(einsums).max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tokens", "wide"), [(64, 512), (512, 64)])
def test_on_a_cpu_a_kernels_gradient_copies_the_smaller_operand_to_have_its_tokens_last(dtype, tokens, wide):
    x, kernel = jnp.zeros((1, 96, tokens), dtype), jnp.zeros((tokens, wide), dtype)

    def gradient(x, kernel, of_y):
        return jax.vjp(lambda kernel: product("bld,df->blf", x, kernel), kernel)[1](of_y)

    compiled = jax.jit(gradient).lower(x, kernel, jnp.zeros((1, 96, wide), dtype)).compile().as_text()
    assert "[64,96]" in compiled
    assert "[512,96]" not in compiled


def test_on_a_tpu_or_gpu_a_product_stays_in_bfloat16_and_on_a_cpu_it_ends_in_float32():
    x, y = operands(SPECS[0])
    traced = jax.jit(lambda x, y: product(SPECS[0], x, y)).trace(x, y)
    for platform, result in (("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        dots = [line for line in lowered.splitlines() if "dot_general" in line]
        assert len(dots) == 1
        assert dots[0].rstrip().endswith(f"x{result}>")


def test_a_look_up_and_its_gradient_are_those_of_indexing():
    table = jax.random.normal(jax.random.key(0), (40, 16)).astype(jnp.bfloat16)
    indices = jax.random.randint(jax.random.key(1), (3, 50), 0, 40)  # some rows several times, some not at all
    weight = jax.random.normal(jax.random.key(2), (3, 50, 16)).astype(jnp.bfloat16)
    found, pull = jax.vjp(lambda table: look_up(table, indices), table)
    expected, expected_pull = jax.vjp(lambda table: table[indices], table)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(weight)[0], expected_pull(weight)[0])


def test_on_a_cpu_a_look_up_converts_no_table_to_float32():
    table, indices = jnp.zeros((40, 16), jnp.bfloat16), jnp.zeros(5, jnp.int32)
    for function, converts in ((look_up, False), (lambda table, indices: table[indices], True)):
        compiled = jax.jit(function).lower(table, indices).compile().as_text()
        assert ("f32[40,16]" in compiled) == converts


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 amx_bf16 amx_tile", "bfloat16"), ("avx512f avx512_bf16", "bfloat16"), ("avx2 avx512f", "")],
)
def test_products_are_bfloat16_where_the_processor_has_units_for_it(flags, expected, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    assert fastest_dtype(cpuinfo) == "", "no such file"
    cpuinfo.write_text(f"model name\t: a CPU\nflags\t\t: {flags}\n")
    assert fastest_dtype(cpuinfo) == expected
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert fastest_dtype(cpuinfo) == "bfloat16"

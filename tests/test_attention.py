"""Attention's kernels: that all give what plain XLA gives, on one device and under a mesh."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerankjax.model import attention
from rerankjax.model.attention import (
    attend,
    attend_blocks,
    attend_causal,
    attend_cudnn,
    on_each_device,
    pick,
)
from rerankjax.model.decoder import hidden_states, init_decoder

B, H, K, L, E = 4, 4, 2, 140, 16


def rows():
    """Queries, keys and values; rows padded on the left, on the right with a gap, on both sides, and wholly."""
    q, k, v = (jax.random.normal(jax.random.key(i), (B, heads, L, E)) for i, heads in enumerate((H, K, K)))
    real = ((50, L), (0, 90), (9, 137), (0, 0))
    mask = jnp.array([[start <= i < end for i in range(L)] for start, end in real])
    return q, k, v, mask.at[1, 3:7].set(False)


def gradients(function, q, k, v, mask):
    """What `function` gives at real tokens, and the gradients of a sum that weighs each otherwise."""
    weights = jax.random.normal(jax.random.key(3), q.shape)

    @jax.jit
    def run(q, k, v):
        def total(q, k, v):
            y = jnp.where(mask[:, None, :, None], function(q, k, v, mask), 0).astype(jnp.float32)
            return jnp.sum(weights * y), y

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    return run(q, k, v)


@functools.cache
def expected():
    return gradients(attend_blocks, *rows())


def assert_close(found, expected, tolerance=1e-5):
    """Each array, within `tolerance` of its largest number."""

    def check(a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(check, found, expected)


def check_meshes():
    """Eight devices: rows split over two axes and heads over one, each over another one, and nothing split."""
    splash = functools.partial(attend_causal, attention="splash")
    names, seen = ("data", "fsdp", "sequence", "tensor"), []

    def look(q, k, v, mask):
        seen.append((*q.shape[:2], k.shape[1]))
        return q

    for shape in ((2, 2, 1, 2), (4, 1, 2, 1), (8, 1, 1, 1)):
        with jax.set_mesh(jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * 4)):
            on_each_device(look, *rows())
            assert_close(gradients(splash, *rows()), expected())
    assert seen == [(1, 2, 1), (1, 2, 1), (4, 4, 2)]


def test_blocks_are_attention_under_a_causal_mask():
    def causal(q, k, v, mask):
        return attend(q, k, v, jnp.tril(jnp.ones((1, L, L), bool)) & mask[:, None, :])

    assert_close(expected(), gradients(causal, *rows()))


@pytest.mark.parametrize("block", [128, 512], ids=["two blocks", "one block"])
def test_splash_gives_what_xla_gives(block, monkeypatch):
    monkeypatch.setattr(attention, "SPLASH_BLOCK", block)
    splash = functools.partial(attend_causal, attention="splash")
    assert "shard_map" not in str(jax.make_jaxpr(splash)(*rows()))
    assert_close(gradients(splash, *rows()), expected())
    assert jnp.isfinite(jax.jit(splash)(*rows())).all()


def test_splash_gives_what_xla_gives_on_every_mesh_of_eight_devices():
    """In a process of its own, which has as many CPU devices as it starts with."""
    root = Path(__file__).parent
    code = "import test_attention; test_attention.check_meshes()"
    environment = os.environ | {"PYTHONPATH": f"{root.parent}:{root}", "JAX_NUM_CPU_DEVICES": "8", "NPROC": "16"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_split_already_is_not_split_again():
    spec = jax.sharding.PartitionSpec("data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        splash = functools.partial(attend_causal, attention="splash")
        split = jax.shard_map(splash, in_specs=(spec,) * 4, out_specs=spec, check_vma=False)
        y = jnp.where(rows()[3][:, None, :, None], jax.jit(split)(*rows()), 0)
        assert_close(y, expected()[1])


def test_real_tokens_moved_to_the_front_attend_as_where_they_were(monkeypatch):
    """All of cuDNN's path but its kernel, in whose place the same function's reference is asked."""
    reference = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **options: reference(*a, **options | {"implementation": "xla"})
    )
    assert_close(gradients(attend_cudnn, *rows()), expected())
    assert jnp.isfinite(attend_cudnn(*rows())).all()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_cudnn_gives_what_xla_gives(dtype):
    *arrays, mask = rows()
    arrays = [a.astype(dtype) for a in arrays]
    cudnn = functools.partial(attend_causal, attention="cudnn")
    assert "fmha" in jax.jit(cudnn).lower(*arrays, mask).as_text()
    assert_close(gradients(cudnn, *arrays, mask), gradients(attend_blocks, *arrays, mask), 3e-2)
    assert jnp.isfinite(jax.jit(cudnn)(*arrays, mask)).all()


def test_a_model_with_splash_has_the_hidden_states_of_one_with_xla(tiny):
    params = init_decoder(tiny, jax.random.key(0))
    mask = rows()[3][:3, :40].at[2].set(False)
    tokens = jax.random.randint(jax.random.key(1), mask.shape, 0, tiny.vocab_size)

    def of(name):
        config = dataclasses.replace(tiny, attention=name)
        run = jax.jit(functools.partial(hidden_states, config))
        assert ("pallas_call" in str(jax.make_jaxpr(run)(params, tokens, mask))) == (name == "splash")
        return jnp.where(mask[..., None], run(params, tokens, mask), 0)

    auto = of("auto")  # XLA, on a CPU
    np.testing.assert_array_equal(auto, of("xla"))
    assert_close(of("splash"), auto)


def test_auto_goes_by_the_backend(monkeypatch):
    kernels = {"cpu": "skip", "gpu": "cudnn", "tpu": "splash"}
    for backend, kernel in kernels.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert pick("auto", jnp.dtype("bfloat16"), 64) == kernel
        for name in attention.FASTEST.values():
            assert pick(name, jnp.dtype("bfloat16"), 64) == name  # what is named is obeyed


@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 64), ("bfloat16", 12), ("float16", 256)])
def test_what_cudnn_does_not_take_goes_to_xla(dtype, head_dim):
    assert pick("cudnn", jnp.dtype(dtype), head_dim) == "xla"
    assert pick("splash", jnp.dtype(dtype), head_dim) == "splash"


def test_an_unknown_kernel_is_refused(tiny):
    with pytest.raises(ValueError, match=r'attention = "flash" is unknown: use one of auto, xla, skip, splash, cudnn'):
        dataclasses.replace(tiny, attention="flash")

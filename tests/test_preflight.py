"""Preflight, on simulated CPU devices: what the steps take is what a run takes, and what it suggests then fits."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import jax
import pytest
from rerankjax.loop.experiment import resolve

from rerankjax.capacity import topology
from rerankjax.capacity.device_steps import Step, device_steps
from rerankjax.capacity.preflight import Compiler, need_of, table
from rerankjax.capacity.preflight_search import flags, suggest
from rerankjax.capacity.roofline import Cost, parameter_count
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import make_mesh
from rerankjax.model.training import start_state

ROOT = Path(__file__).parents[1]


def load(path: str):
    spec = importlib.util.spec_from_file_location("loaded", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(name: str, arg: str):
    return load(f"configs/{name}.py").get_config(arg)


@pytest.fixture(scope="module")
def config():
    config = get_config("mini", "smoke")
    config.update({"max_prompt_length": 24, "sampling": {"max_completion_length": 8}, "mesh": {"fsdp": 2, "tensor": 4}})
    config.model.num_hidden_layers = 1
    config.update({"candidates": {"train": 4}, "early_stopping": {"samples": 4}})  # one program draws for both
    return config


@pytest.fixture(scope="module")
def small(config):
    return resolve(config, 8)


@pytest.fixture(scope="module")
def compiler():
    return Compiler(topology.find("cpu:8"))


def of_memory(compiler: Compiler, size: float) -> Compiler:
    """The same programs, with another size of memory."""
    compiler.topology = dataclasses.replace(compiler.topology, memory_bytes=size)
    return compiler


def test_every_step_of_a_small_run_is_compiled_and_fits(small, compiler):
    lines = [compiler.line(step) for step in device_steps(small, compiler.topology)]
    names = ["SFT", "reranker", "PPO rollout", "PPO update", "read prompts", "draw", "draw, in PPO", "scoring"]
    assert [line.step.name for line in lines] == names
    assert all(line.need.compiled and line.fits and line.seconds > 0 for line in lines)
    rows = table(lines, compiler.topology).splitlines()
    assert len(rows) == 2 + len(names)
    assert len({row.count("|") for row in rows}) == 1
    again = compiler.count
    assert compiler.line(lines[0].step) == lines[0]
    assert compiler.count == again == len(names) - 1  # nothing is compiled twice


def test_weights_and_optimiser_are_the_bytes_that_a_state_has_on_a_device(small, compiler):
    step = device_steps(small, compiler.topology)[0]
    mesh = make_mesh(small.mesh, compiler.topology.devices)
    params = jax.jit(functools.partial(init_decoder, small.model))(jax.random.key(0))
    state = start_state(params, small.sft.optimizer, mesh)

    def on_one(tree) -> int:
        return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))

    need = need_of(step, None)
    assert (need.weights, need.optimiser) == (on_one(state.params), on_one(state.opt_state))
    assert need.held == need.weights  # the parameters that it began with
    assert on_one(state.params) < parameter_count(small.model) * 4 / 4  # it is split


def test_an_oversized_batch_does_not_fit_and_what_is_suggested_does(config, compiler):
    fits = compiler.line(device_steps(resolve(config, 8), compiler.topology)[0]).need.total
    of_memory(compiler, 1.2 * fits)  # SFT takes most here
    config = config.copy_and_resolve_references()
    config.sft.batch_size *= 2
    large = resolve(config, 8)
    assert not compiler.line(device_steps(large, compiler.topology)[0]).fits

    found = suggest(large, compiler, compiler.count + 4)
    given = dict(flag.removeprefix("--config.").split("=") for flag in flags(large, found))
    assert given["sft.optimizer.microbatches"] in ("2", "4")
    config.update_from_flattened_dict({name: v if name.endswith("remat") else int(v) for name, v in given.items()})
    again = resolve(config, 8)
    assert again == found
    assert all(compiler.line(step).fits for step in device_steps(again, compiler.topology))


def test_where_nothing_fits_nothing_is_compiled_and_the_step_is_named(small, compiler, capsys):
    said = load("tpu/preflight.py").run(small, of_memory(compiler, 1e5).topology, 60)
    printed = capsys.readouterr()
    assert f"{parameter_count(small.model):,} parameters, all trained; 8 x simulated CPU device" in printed.out
    assert printed.out.count("**too much**") == 8
    assert re.search(r"\(0 compilations\). At best, .* takes 0.000\d+ GB of 0.0001 before its activations", said)
    assert "with --config.candidates.batch_size=2: use more chips" in said  # fewer problems leave more room
    assert "compiling" not in printed.err


@pytest.mark.parametrize(
    ("message", "made"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.04G) "
            "exceeds available HBM (15.75G).",
            27.04 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 512.00M of 15.75G hbm.", 2**29),
        ("RESOURCE_EXHAUSTED: no", float("inf")),
    ],
)
def test_a_compiler_that_refuses_is_believed(compiler, message, made):
    def refuse():
        raise jax.errors.JaxRuntimeError(message)

    step = Step("refused", refuse, {}, [], Cost(1, 1), make_mesh(), variant=(message,))
    line = of_memory(compiler, 1e8).line(step)
    assert not line.fits
    assert line.need.total == made
    assert "**too much**" in table([line], compiler.topology)


@pytest.mark.parametrize(("arg", "trained"), [("6.7b", 0), ("6.7b-lora", 16)])
@pytest.mark.parametrize("chips", [4, 16])
def test_the_shape_of_deepseek_coder_resolves(arg, trained, chips):
    e = resolve(get_config("preflight", arg), chips)
    assert parameter_count(e.model) == 6_740_512_768
    assert (e.lora.rank, e.model.compute_dtype, e.max_prompt_length) == (trained, "bfloat16", 512)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v7:4x4", "'v7' is unknown"),
        ("v5e:16", "'16' is no shape of 2 numbers"),
        ("v5p:2x2", "no shape of 3 numbers"),
        ("h100:0", "no shape of 1 numbers"),
        ("h100:12", "hosts have 8 GPUs; give a multiple"),
        ("cpu:9", "JAX has 8 CPU devices"),
    ],
)
def test_a_topology_that_is_none_is_refused(name, said):
    with pytest.raises(topology.TopologyError, match=said):
        topology.find(name)


@pytest.mark.parametrize(("name", "missing", "extra"), [("v5e:4x4", "libtpu", "tpu"), ("h100:8", "cuda13", "cuda")])
def test_a_compiler_that_is_missing_is_named_with_the_remedy(monkeypatch, name, missing, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(topology.TopologyError, match=rf"{missing}.* is not installed; pip install .*\[{extra}\]"):
        topology.find(name)

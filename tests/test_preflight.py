"""Preflight, on simulated CPU devices: what the steps take is what a run takes, and what it suggests then fits."""

import dataclasses
import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import mini, paper
from rerankjax.capacity import preflight_report, topology
from rerankjax.capacity.device_steps import Step, attended, device_steps, every_step
from rerankjax.capacity.preflight import Compiler, memory_use, table
from rerankjax.capacity.preflight_search import flags, suggest
from rerankjax.capacity.roofline import Cost, parameter_count
from rerankjax.capacity.run_shapes import find_models, open_run
from rerankjax.loop.config import ConfigError
from rerankjax.loop.programs import DeviceProgram
from rerankjax.loop.resolve import resolve
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import init_decoder
from rerankjax.model.deepseek import DEEPSEEK_CODER
from rerankjax.model.packing import PackConfig
from rerankjax.model.pretrained import write_config
from rerankjax.model.sharding import make_mesh
from rerankjax.model.training import start_state

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config():
    config = mini.get_config("smoke")
    config.update({"max_prompt_length": 24, "sampling": {"max_completion_length": 8}, "mesh": {"fsdp": 2, "tensor": 4}})
    config.generator.shape.update({"num_hidden_layers": 1, "num_key_value_heads": 4})
    for training in (config.sft, config.reranker_training, config.retraining):
        training.optimizer.microbatches = 1
    config.ppo.microbatches = 1
    # One program draws for all.
    config.update(
        {"candidates": {"train": 4}, "early_stopping": {"samples": 4}, "evaluation": {"test": {"samples": 4}}}
    )
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
    found = [compiler.estimate(step) for step in device_steps(small, compiler.topology)]
    assert all(estimate.memory.compiled and estimate.fits and estimate.seconds > 0 for estimate in found)
    rows = table(found, compiler.topology).splitlines()
    assert len(rows) == 2 + len(found)
    assert len({row.count("|") for row in rows}) == 1
    assert compiler.count == len(found)
    assert compiler.estimate(found[0].step) == found[0]
    assert compiler.count == len(found)  # nothing is compiled twice


def test_of_each_kind_the_largest_step_is_compiled(small, compiler):
    """And that beside which most is resident: of samples those in PPO, of rerankers those that are trained again."""
    names = [step.name for step in device_steps(small, compiler.topology)]
    updates = ["SFT", "SFT, Adam", "reranker, again", "reranker, again, Adam"]
    trained = [*updates, "PPO reference", "PPO scores", "PPO outputs", "PPO update", "PPO update, Adam"]
    drawn = [f"{step}, {what}" for what in ("PPO", "PPO's dev") for step in ("read prompts", "draw")]
    assert names == [*trained, *drawn, "scoring, train", "log-probabilities, dev"]
    longer = dataclasses.replace(small.sampling, max_completion_length=16)
    evaluation = {"test": dataclasses.replace(small.evaluation["test"], sampling=longer)}
    names = [step.name for step in device_steps(dataclasses.replace(small, evaluation=evaluation), compiler.topology)]
    assert "draw, test" in names
    assert "draw, PPO's dev" in names
    assert "draw, test, greedy" not in names


def test_weights_and_optimiser_are_the_bytes_that_a_state_has_on_a_device(small, compiler):
    step = device_steps(small, compiler.topology)[0]
    mesh = make_mesh(small.mesh, compiler.topology.devices)
    params = jax.jit(functools.partial(init_decoder, small.generator.shape))(jax.random.key(0))
    state = start_state(params, small.sft.optimizer, mesh)

    def on_one(*tree) -> int:
        return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))

    use = memory_use(step, None)
    assert (use.weights, use.optimiser) == (on_one(state.params), on_one(state.opt_state, state.step))
    assert use.resident == use.weights  # the parameters that it began with
    assert on_one(state.params) < parameter_count(small.generator.shape) * 4 / 4  # it is split


def test_ppo_holds_policy_reference_and_a_reward_model_of_another_shape(config, compiler):
    """Two models are resident from the end of SFT on; of adapters' bases no copy is counted twice."""
    config = config.copy_and_resolve_references().unlock()
    config.mesh.update({"fsdp": 1, "tensor": 1})
    config.candidates.prompts_in_flight = config.ppo.batch_size = 32
    for training in (config.sft, config.reranker_training, config.retraining):
        training.batch_size = 32
    config.reranker.shape = config.generator.shape.copy_and_resolve_references()
    config.reranker.shape.hidden_size = 128
    policy, reward = (4 * parameter_count(ModelConfig(**config[name].shape)) for name in ("generator", "reranker"))

    def of(name: str, rank: int):
        config.lora.rank = rank
        step = next(s for s in every_step(open_run(resolve(config, 8), compiler.topology)) if s.name == name)
        return memory_use(step, None)

    heads = 2 * 4 * (48 + 128)  # of policy and reward model, and rounding
    whole = of("PPO update", 0)
    assert whole.weights == pytest.approx(policy, abs=heads)
    # The reference, the best policy so far, the reranker's trunk and the reward model that it became.
    assert whole.resident == pytest.approx(2 * policy + 2 * reward, abs=heads)
    assert of("SFT of the reranker", 0).resident == policy + reward
    assert of("PPO reference", 0).weights == pytest.approx(policy, abs=heads)
    assert of("PPO scores", 0).weights == pytest.approx(reward, abs=heads)
    adapter = 60_000
    assert of("PPO scores", 1).weights == pytest.approx(reward, abs=adapter)
    assert of("PPO update", 1).resident == pytest.approx(reward, abs=adapter)
    assert of("reranker", 1).resident == pytest.approx(policy, abs=adapter)


def test_attention_in_long_rows_costs_what_it_does_in_rows_of_one_sequence(monkeypatch):
    monkeypatch.setattr("rerankjax.model.packing.SHORT", 0)
    short, long = (PackConfig.from_batch_size(16, 2, 9, 7, shards=2, long_rows=rows) for rows in (False, True))
    assert (long.rows, long.length) == (2, 64)
    assert attended(long) == attended(short) == (8, 16)


def test_an_oversized_batch_does_not_fit_and_what_is_suggested_does(config, compiler):
    config = config.copy_and_resolve_references().unlock()
    config.sft.batch_size *= 32
    large = resolve(config, 8)
    uses = [compiler.estimate(step).memory for step in device_steps(large, compiler.topology)]
    assert uses[0].total == max(use.total for use in uses)
    of_memory(compiler, 0.9 * uses[0].total)
    assert not compiler.estimate(device_steps(large, compiler.topology)[0]).fits

    found = suggest(large, compiler, compiler.count + 20)
    given = dict(flag.removeprefix("--config.").split("=") for flag in flags(large, found))
    assert given.keys() <= {"sft.optimizer.microbatches", "generator.remat"}
    assert given
    config.update_from_flattened_dict({name: v if name.endswith("remat") else int(v) for name, v in given.items()})
    again = resolve(config, 8)
    assert again == found
    assert all(compiler.estimate(step).fits for step in device_steps(again, compiler.topology))


def test_where_nothing_fits_nothing_is_compiled_and_the_step_is_named(small, compiler, capsys):
    said = preflight_report.run(small, of_memory(compiler, 1e5).topology, 60)
    printed = capsys.readouterr()
    assert f"generator: {parameter_count(small.generator.shape):,} parameters; all are trained" in printed.out
    assert "8 x simulated CPU device" in printed.out
    assert printed.out.count("**too much**") == len(device_steps(small, compiler.topology))
    assert re.search(r"\(0 compilations\). In the best case, .* takes 0.000\d+ GB of 0.0001 without its", said)
    assert "--config.candidates.prompts_in_flight=2: use more chips" in said  # fewer prompts leave more room
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

    program = DeviceProgram(type("Refusing", (), {"lower": refuse}), ())
    found = of_memory(compiler, 1e8).estimate(Step("refused", "refused", program, {}, [], Cost(1, 1), make_mesh()))
    assert not found.fits
    assert found.memory.total == made
    assert "**too much**" in table([found], compiler.topology)


@pytest.mark.parametrize(("variant", "sizes"), [("1.3b", ("1.3B", "6.7B")), ("6.7b", ("6.7B",)), ("33b", ("33B",))])
def test_the_papers_checkpoints_have_the_shapes_of_deepseek_coder(variant, sizes):
    models = find_models(resolve(paper.get_config(variant), 16), "xla", "bfloat16")
    assert {model.shape for model in models} == {
        dataclasses.replace(DEEPSEEK_CODER[size], compute_dtype="bfloat16", remat="full", attention="xla")
        for size in sizes
    }
    assert {model.dtype for model in models} == {"bfloat16"}


def test_a_checkpoints_shape_is_its_config_json(small, tmp_path, monkeypatch):
    shape = small.generator.shape
    write_config(tmp_path, shape, "ForCausalLM")
    source = dataclasses.replace(
        small.generator, shape=None, checkpoint=str(tmp_path), compute_dtype="auto", remat="dots"
    )
    model, _ = find_models(dataclasses.replace(small, generator=source), "xla", "bfloat16")
    assert model.shape == dataclasses.replace(shape, compute_dtype="bfloat16", remat="dots", attention="xla")

    asked = []

    def download(*arguments, **keywords):
        asked.append((arguments, keywords))
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for checkpoint, said in (("someone/else", "the hub cannot be reached"), (str(tmp_path / "no"), "config.json does")):
        away = dataclasses.replace(small, generator=dataclasses.replace(source, checkpoint=checkpoint))
        with pytest.raises(
            ConfigError, match=rf"config.generator.checkpoint = .*{said}.*give a folder with its config"
        ):
            find_models(away, "xla", "")
    assert asked == [(("someone/else", "config.json"), {"revision": None})]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--config=configs/mini.py:smoke"], "--topology", marks=pytest.mark.long),
        pytest.param(
            ["--config=configs/mini.py:smoke", "--topology=v7:4"],
            "rerankjax preflight: --topology=v7:4: 'v7' is unknown",
            marks=pytest.mark.long,
        ),
        (
            ["--config=configs/mini.py:smoke", "--topology=cpu:8"],
            "rerankjax preflight: config.candidates.prompts_in_flight = 4: not a positive multiple of the 8 devices",
        ),
        (
            ["--config=configs/mini.py:smoke", "--topology=cpu:1", "--memory_gb=0.001", "--max_compilations=1"],
            "rerankjax preflight: the run does not fit",
        ),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments, said):
    run = [sys.executable, "-m", "rerankjax", "preflight", *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1] + done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v7:4x4", "'v7' is unknown"),
        ("v5e:16", "'16' is not a shape of 2 numbers"),
        ("v5p:2x2", "not a shape of 3 numbers"),
        ("h100:0", "not a shape of 1 numbers"),
        ("h100:12", "a host has 8 GPUs; give a multiple of 8"),
        ("cpu:9", "JAX has only 8 CPU devices"),
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

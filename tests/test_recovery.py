"""Training that is cut anywhere goes on to the very same bits, and on another mesh to the same figures."""

import dataclasses
import functools
import gc
import shutil
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.mini import get_config
from rerankjax.loop import programs, trainers
from rerankjax.loop.resolve import resolve
from rerankjax.model.decoder import init_decoder
from rerankjax.model.sharding import MeshConfig, make_mesh
from rerankjax.pairs.mining import Pair
from rerankjax.policy.ppo import Reward
from rerankjax.problems.problem import Problem, Solution
from rerankjax.prompts.tokenizer import train_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.run.metrics import read_metrics
from rerankjax.run.recovery import Preempted, Recovery, preemptible

STEPS = 24
PROBLEMS = tuple(Problem(f"p{i}", "py", f"def f{i}(x):\n", f"assert f{i}(1)", ("\ndef",)) for i in range(12))
SOLUTIONS = tuple(Solution(p.name, f"    return x + {i}\n", None) for i, p in enumerate(PROBLEMS))
PAIRS = tuple(Pair(p.name, f"    return x + {i}", f"    return x - {i}") for i, p in enumerate(PROBLEMS))


@functools.cache
def setting():
    config = get_config("smoke")
    config.update({"max_prompt_length": 16})
    config.generator.shape.update({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4})
    config.sampling.max_completion_length = 12
    for training in (config.sft, config.reranker_training):
        training.batch_size = 8
        training.optimizer.update({"steps": STEPS, "learning_rate": 1e-3})
    config.ppo.update({"iterations": STEPS, "batch_size": 8, "minibatches": 1, "epochs": 1, "kl_target": 0.5})
    config.early_stopping.every = 4
    config.checkpoints.update({"steps": 5, "iterations": 5})
    config = resolve(config, 1)
    tokenizer = train_tokenizer([p.prompt for p in PROBLEMS] + [s.completion for s in SOLUTIONS], 400)
    return config, tokenizer, init_decoder(config.generator.shape, jax.random.key(0))


def train(trainer, directory, mesh, **checkpoints):
    """The trained parameters; metrics go into `directory`, checkpoints beside it."""
    config, tokenizer, sft = setting()
    config = dataclasses.replace(config, checkpoints=dataclasses.replace(config.checkpoints, **checkpoints))
    shape = config.generator.shape
    directory.mkdir(exist_ok=True, parents=True)
    work = trainers.StageIO(directory, directory.with_name(f"{directory.name}.recovery"), mesh, trainer)
    if trainer == "sft":
        return trainers.train_sft(config, shape, PROBLEMS, SOLUTIONS, tokenizer, 0, work)
    if trainer == "reranker":
        start = init_reranker(sft, jax.random.key(1))
        training = config.reranker_training
        return trainers.train_reranker(config, shape, training, None, start, PAIRS, PROBLEMS, tokenizer, [0], work)
    reward = Reward((init_reranker(sft, jax.random.key(1)),), np.zeros(1, np.float32), np.ones(1, np.float32))

    def dev_rates(params):  # of the parameters alone, and not monotonous
        scale = np.asarray(jax.device_get(params["norm"]["scale"]))
        return {"pass_rate": float(np.sin(1e4 * scale.sum(dtype=np.float64)))}

    return trainers.train_ppo(
        config, shape, shape, sft, reward, PROBLEMS, tokenizer, [0], jax.random.key(2), dev_rates, work
    )


def run_cut(trainer, directory, mesh, step, monkeypatch):
    """SIGTERM comes while `step` runs."""
    with monkeypatch.context() as patch, preemptible():
        after = Recovery.after

        def interrupted(self, i, snapshot):
            if i == step:
                signal.raise_signal(signal.SIGTERM)
            after(self, i, snapshot)

        patch.setattr(Recovery, "after", interrupted)
        with pytest.raises(Preempted):
            train(trainer, directory, mesh)


@pytest.mark.parametrize("cuts", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("trainer", ["sft", "reranker", "ppo"])
def test_a_run_cut_at_any_step_ends_in_the_bits_of_the_whole_one(trainer, cuts, tmp_path, moments):
    """A cut leaves the checkpoints up to it: one run keeps them all, others go on from each."""
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = train(trainer, tmp_path / "whole", mesh, steps=1, iterations=1, keep=STEPS)
    metrics = read_metrics(tmp_path / "whole")
    for step in moments.sample(range(1, STEPS), cuts):
        kept = tmp_path / f"cut{step}.recovery" / str(step)
        shutil.copytree(tmp_path / "whole.recovery" / str(step), kept)
        resumed = train(trainer, tmp_path / f"cut{step}", mesh)
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)
        assert read_metrics(tmp_path / f"cut{step}") == metrics


def test_sigterm_saves_the_step_it_came_in(tmp_path, monkeypatch):
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = train("sft", tmp_path / "whole", mesh)
    run_cut("sft", tmp_path / "cut", mesh, 8, monkeypatch)
    assert read_metrics(tmp_path / "cut")[-1]["step"] == 8
    assert (tmp_path / "cut.recovery" / "8").is_dir()
    jax.tree.map(np.testing.assert_array_equal, train("sft", tmp_path / "cut", mesh), whole)


@pytest.mark.parametrize("trainer", ["sft", *(pytest.param(t, marks=pytest.mark.long) for t in ("reranker", "ppo"))])
def test_a_run_goes_on_on_another_mesh(trainer, tmp_path, monkeypatch):
    first, second = make_mesh(MeshConfig(8)), make_mesh(MeshConfig(2, fsdp=2, tensor=2))
    train(trainer, tmp_path / "whole", first)
    run_cut(trainer, tmp_path / "cut", first, 7, monkeypatch)
    train(trainer, tmp_path / "cut", second)
    whole, resumed = (read_metrics(tmp_path / name) for name in ("whole", "cut"))
    assert len(whole) == len(resumed)
    for one, other in zip(whole, resumed, strict=True):
        for name in ("loss", "score"):
            assert one.get(name, 0) == pytest.approx(other.get(name, 0), abs=1e-4), (name, one["step"])


def test_the_last_checkpoint_is_enough_where_no_signal_came(tmp_path, monkeypatch):
    """SIGKILL: what came after the last of the regular checkpoints is computed again."""
    mesh = make_mesh(devices=jax.devices()[:1])
    whole = train("sft", tmp_path / "whole", mesh)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        after = Recovery.after

        def killed(self, i, snapshot):
            after(self, i, snapshot)
            if i == 13:
                raise Killed

        patch.setattr(Recovery, "after", killed)
        with pytest.raises(Killed):
            train("sft", tmp_path / "cut", mesh)
    kept = sorted(int(p.name) for p in (tmp_path / "cut.recovery").iterdir() if p.name.isdigit())
    assert kept == [5, 10]
    jax.tree.map(np.testing.assert_array_equal, train("sft", tmp_path / "cut", mesh), whole)


def test_divergence_stops_with_the_inputs_of_its_step(tmp_path, monkeypatch):
    config, _, _ = setting()
    broken = programs.make_sft_step

    def make(*arguments):
        step = broken(*arguments)

        class Diverging:
            add, apply = step.add, step.apply

            def __call__(self, state, base, parts, counts):
                state, metrics = step(state, base, parts, counts)
                return state, metrics | {"loss": jnp.where(state.step == 9, jnp.inf, metrics["loss"])}

        return Diverging()

    monkeypatch.setattr(programs, "make_sft_step", make)
    with pytest.raises(FloatingPointError, match=r"loss is inf at step 9 .*cut.recovery-step9.npz"):
        train("sft", tmp_path / "cut", make_mesh(devices=jax.devices()[:1]))
    saved = np.load(tmp_path / "cut.recovery-step9.npz")
    assert saved["0.tokens"].shape == (1, config.max_prompt_length + config.sampling.max_completion_length)
    assert saved["0.mask"].dtype == bool


def test_training_moves_nothing_to_the_device_unasked(tmp_path, monkeypatch):
    """Batches are on the device before a step takes them, and figures are fetched, not leaked."""
    fit = trainers._fit

    def guarded(*arguments):
        with jax.transfer_guard("disallow"):
            return fit(*arguments)

    monkeypatch.setattr(trainers, "_fit", guarded)
    train("sft", tmp_path / "run", make_mesh(devices=jax.devices()[:1]))


def test_sigterm_in_a_callback_of_the_garbage_collector_is_not_lost():
    """Python ignores what such a callback raises."""

    def callback(phase, _):
        if phase == "start" and not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGTERM)

    def collect():
        gc.collect()
        assert sent
        time.sleep(10)

    sent, before = [], (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM), sys.unraisablehook)
    gc.callbacks.append(callback)
    try:
        with pytest.raises(Preempted), preemptible():
            collect()
    finally:
        gc.callbacks.remove(callback)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM), sys.unraisablehook) == before

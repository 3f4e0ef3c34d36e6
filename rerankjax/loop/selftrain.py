"""The paper's loop, two iterations: SFT, reranker, PPO, then the reranker again on what PPO found, and PPO again."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rerankjax import sandbox
from rerankjax.loop import stages
from rerankjax.loop.experiment import Experiment, resolve
from rerankjax.loop.export import export, rerank_command
from rerankjax.loop.reuse import reuse
from rerankjax.loop.seed_run import open_seed
from rerankjax.loop.summary import conclude
from rerankjax.model.sharding import make_mesh
from rerankjax.results.evaluation import Evaluation
from rerankjax.run.hosts import is_first, wait_for_all
from rerankjax.run.recovery import preemptible
from rerankjax.run.rundir import durable, open_run


def selftrain(config: ConfigDict, workdir: str, other: str | None = None) -> None:
    """The whole run in `workdir`, from where it was, to its table and report.

    other: the directory of another run; its stages that `config` would make alike are taken (see `reuse`).

    Several processes (`hosts.connect`) each call it with the same arguments; the first one speaks and writes.

    Raises:
        Preempted: SIGTERM came. What was at work is saved; start the run again.
        ConfigError: the config cannot run.
        SandboxError: programs cannot be contained here.
        RunDirectoryError: `workdir` is in use, or holds a run of another config; `other` has nothing to take. All
            before any work.
    """
    e = resolve(config, jax.device_count())
    sandbox.check()
    resolved = dataclasses.asdict(e)
    with (
        contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()),
        preemptible(),
        open_run(workdir, resolved, primary=is_first()) as root,
    ):
        # A run that goes on does not compile again what it compiled before.
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(durable(root.absolute() / "compiled")))
        if other is not None:
            taken = reuse(root, Path(other), resolved) if is_first() else []
            wait_for_all("reuse")
            print(f"{len(taken)} stages are taken from {other}")
        mesh = make_mesh(e.mesh)
        evaluations = [found for seed in e.seeds for found in run_seed(e, seed, root / f"seed{seed}", mesh)]
        if is_first():
            conclude(root, resolved, evaluations)
        wait_for_all("the end")
        print(f"rank with it: {rerank_command(root / f'seed{e.seeds[0]}')}")


def run_seed(e: Experiment, seed: int, root: Path, mesh: Mesh) -> Iterator[Evaluation]:
    """Every arm's evaluation, as soon as it is known; then the last reranker is exported.

    Stages that `root` holds already are read, not run.
    """
    run = open_seed(e, seed, root, mesh)

    sft = stages.sft_policy(run)
    sft_train = stages.candidates(run, "sft", lambda: sft, "train")
    first = stages.first_reranker(run, sft, sft_train)
    yield stages.evaluate(run, "sft", "sft", lambda: sft, "first", first)

    sft_scores = stages.scores(run, "first", first, "sft", "train", sft_train)
    ppo = stages.ppo_policy(run, "ppo", sft, first, sft_scores)
    evaluation = stages.evaluate(run, "ppo", "ppo", ppo, "first", first)
    yield evaluation

    second = first
    ppo_train = stages.candidates(run, "ppo", ppo, "train")
    ppo_scores = stages.scores(run, "first", first, "ppo", "train", ppo_train)
    for arm in e.arms:
        second = stages.grown_reranker(run, arm, sft, sft_train, ppo_train, ppo_scores)
        evaluation = stages.evaluate(run, arm, "ppo", ppo, arm, second)
        yield evaluation
        if arm in e.ppo_arms:
            # From the SFT model again, not from the first policy: PPO is the adversary, not the product.
            arm_scores = stages.scores(run, arm, second, "sft", "train", sft_train)
            policy = stages.ppo_policy(run, f"ppo2-{arm}", sft, second, arm_scores)
            evaluation = stages.evaluate(run, f"{arm}+ppo", f"ppo2-{arm}", policy, arm, second)
            yield evaluation
    export(run, second, evaluation)

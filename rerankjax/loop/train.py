"""The whole run from one config: SFT, reranker, PPO, then the reranker again on PPO's samples, and PPO again."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rerankjax import sandbox
from rerankjax.candidates.candidate import Candidate
from rerankjax.loop import stages
from rerankjax.loop.evaluate import evaluate, evaluate_ensembles, evaluate_policy, policy_name
from rerankjax.loop.export import export, rerank_command
from rerankjax.loop.problem_sets import TRAIN
from rerankjax.loop.resolve import resolve
from rerankjax.loop.seed_run import SeedRun, open_seed
from rerankjax.loop.stages import BASE, SFT, ParamsLoader
from rerankjax.model.decoder import Params
from rerankjax.model.sharding import make_mesh
from rerankjax.policy.ppo import OWN_SCORE
from rerankjax.results.evaluation import Evaluation
from rerankjax.run.hosts import first_prints, is_first, wait_for_all
from rerankjax.run.recovery import preemptible
from rerankjax.run.reuse import reuse
from rerankjax.run.rundir import durable_path, open_run


def train(config: ConfigDict, workdir: str, others: Sequence[str] = ()) -> None:
    """Starts or resumes the whole run in `workdir`, up to its table, report and export.

    others: directories of other runs, whose stages are taken if they are the same (see `run.reuse`).

    Several processes (`hosts.connect`) each call `train` with the same arguments; the first one prints and writes.

    Raises:
        Preempted: SIGTERM came. Work in progress is saved; start the run again.
        ConfigError: the config cannot run.
        SandboxError: this machine cannot contain programs.
        RunDirectoryError: `workdir` is in use, or has stages of another config; or `others` have no stage to take. All
            three are raised before any work.
    """
    resolved = resolve(config, jax.device_count())
    if resolved.sandbox.engine == "local":
        sandbox.check()
    with (
        first_prints(),
        preemptible(),
        open_run(workdir, resolved, primary=is_first()) as root,
    ):
        # A run that resumes reuses the programs that it compiled before.
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(durable_path(root.absolute() / "compiled")))
        if others:
            taken = reuse(root, [Path(other) for other in others], resolved, resolved.seeds) if is_first() else []
            wait_for_all("reuse")
            print(f"{len(taken)} stages are taken from {', '.join(others)}")
        mesh = make_mesh(resolved.mesh)
        runs = [open_seed(resolved, seed, root, mesh) for seed in resolved.seeds]
        evaluations = [evaluation for run in runs for evaluation in run_seed(run)]
        if is_first():
            # It imports matplotlib, which takes seconds, and is needed only here: errors at the start need not wait.
            from rerankjax.loop.write_report import write_report

            write_report(root, resolved, evaluations)
        wait_for_all("the end")
        if resolved.first_iteration:
            print(f"rank with the exported reranker: {rerank_command(runs[0].path('export'))}")


def run_seed(run: SeedRun) -> Iterator[Evaluation]:
    """Yields every system's evaluation on every set as soon as it is known, then exports the last reranker.

    Stages that are already in the run's directory are read, not run.
    """
    config = run.config
    if config.evaluates_checkpoint:
        yield from evaluate_policy(run, BASE, BASE, lambda: run.generator.load(run.mesh))
    if not config.first_iteration and not config.sft.enabled:
        return
    sft = stages.sft_model(run, run.generator)
    if config.first_iteration:
        yield from _iterations(run, config.first_iteration, sft)
    else:
        yield from evaluate_policy(run, SFT, SFT, lambda: sft)


def _iterations(run: SeedRun, first: str, sft: Params) -> Iterator[Evaluation]:
    """The iterations, each from the one whose policy's samples it mines. PPO starts from the SFT model every time, not
    from the previous policy: the policy is the adversary, not the product."""
    config = run.config
    trunk = stages.sft_model(run, run.reranker) if run.own_reranker else sft
    start = stages.start_policy(run)
    rerankers: dict[str, ParamsLoader] = {}
    policies: dict[str, ParamsLoader] = {start: lambda: sft}
    sampled = stages.candidates(run, start, policies[start], TRAIN)
    given = stages.given_solutions(run)

    def systems(name: str, policy: str) -> Iterator[Evaluation]:
        """An iteration's reranker on the samples of the previous policy, then on those of its own policy."""
        yield from evaluate(run, name, policy, policies[policy], name, rerankers[name], policies[start])
        if config.iterations[name].ppo:
            alone = config.ppo.reward == OWN_SCORE
            rewards = {name: rerankers[name]} if alone else stages.member_loaders(run, name, trunk)
            scores = [stages.scores(run, *reward, start, TRAIN, sampled) for reward in rewards.items()]
            own = policy_name(run, name)
            policies[own] = stages.ppo_policy(run, own, sft, rerankers[name], rewards, np.stack(scores))
            yield from evaluate(run, name, own, policies[own], name, rerankers[name], policies[start])

    rerankers[first] = stages.first_reranker(run, first, trunk, sampled, given)
    yield from (last := list(systems(first, start)))

    data: dict[str, list[Candidate]] = {first: [*sampled, *given]}  # solutions that each iteration's pairs come from
    name = first
    for name, iteration in config.later_iterations():
        before, mined = iteration.after, policy_name(run, iteration.after)
        new = stages.candidates(run, mined, policies[mined], TRAIN)
        new_scores = stages.scores(run, before, rerankers[before], mined, TRAIN, new)
        inputs = [f"candidates/{mined}-{TRAIN}", f"scores/{before}/{mined}-{TRAIN}"]
        rerankers[name] = stages.later_reranker(run, name, trunk, data[before], new, new_scores, inputs)
        data[name] = [*data[before], *new]
        yield from (last := list(systems(name, mined)))
    trained = {policy: params for policy, params in policies.items() if policy != start}
    judges = {k: load for name in rerankers for k, load in stages.member_loaders(run, name, trunk).items()}
    yield from evaluate_ensembles(run, trained, judges, policies[start])
    export(run, name, rerankers[name], last[-len(config.evaluation)])

"""Exports a run's reranker or one of its policies in Hugging Face's format, with labelled samples."""

import dataclasses
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rerankjax.candidates.candidate import Candidate, read_candidates
from rerankjax.loop import stages
from rerankjax.loop.config import ConfigError, ExperimentConfig
from rerankjax.loop.resolve import resolve
from rerankjax.loop.seed_run import SeedRun, open_seed
from rerankjax.loop.stages import ParamsLoader
from rerankjax.model import weights
from rerankjax.model.lora import merge
from rerankjax.model.sharding import make_mesh
from rerankjax.problems.jsonl import write_records
from rerankjax.reranker.saving import save_for_others
from rerankjax.results.evaluation import Evaluation
from rerankjax.run.bucket import is_bucket
from rerankjax.run.hosts import copy_to_host, is_first
from rerankjax.run.rundir import durable_path, open_run
from rerankjax.sandbox import Verdict

EXAMPLES = "examples.jsonl"


@dataclasses.dataclass(frozen=True)
class Example:
    """An input row of `rerankjax rerank`, which ignores `passed`: which of the candidates pass their tests."""

    name: str
    prompt: str
    candidates: tuple[str, ...]
    passed: tuple[bool, ...]


def export(run: SeedRun, name: str, params: ParamsLoader, evaluation: Evaluation) -> Path:
    """seedN/export: the reranker `name` with its tokenizer, and the problems of `evaluation` with their samples."""
    prompt_of = {p.name: p.prompt for p in run.problems[evaluation.evaluation_set].asked}

    def fill(directory: Path, config: ExperimentConfig) -> None:
        reranker = params()
        reranker = copy_to_host(reranker | {"decoder": merge(reranker["decoder"])}, run.mesh)
        if not is_first():
            return
        save_for_others(
            directory, run.reranker.shape, reranker, run.tokenizer, pooling=config.reranker.pooling, chat=False
        )
        rows = zip(evaluation.problems, evaluation.programs, evaluation.passed.tolist(), strict=True)
        examples = [Example(name, prompt_of[name], programs, tuple(passed)) for name, programs, passed in rows]
        write_records(directory / EXAMPLES, examples)

    inputs = [f"rerankers/{name}", f"candidates/{evaluation.policy}-{evaluation.evaluation_set}"]
    return run.stage("export", inputs, fill, everywhere=True)


@dataclasses.dataclass(frozen=True)
class LabelledSamples(Example):
    """The executed samples of a problem. greedy: whether the policy's greedy answer passes its tests, if it has one."""

    greedy: bool | None = None


def export_policy(config: ConfigDict, workdir: str, seed: int | None, policy: str, output: str) -> Iterator[Path]:
    """Writes a policy of a run to the new folder `output`, and its samples to `output`/samples/SPLIT.jsonl; yields the
    paths as they are written.

    config, workdir: as for `loop.train.train`, except that `workdir` is a directory. seed: None for the config's first.

    Raises:
        ConfigError: the run is in a bucket or has no such seed or policy, or `output` is not empty.
        RunDirectoryError: `workdir` is in use, or was made with another config.
    """
    if is_bucket(workdir):
        raise ConfigError(f"--workdir={workdir}: is in a bucket; copy the run to a directory, and give that")
    resolved = resolve(config, jax.device_count())
    seed, folder = resolved.seeds[0] if seed is None else seed, Path(output)
    stages_of_seed = Path(workdir) / f"seed{seed}"
    known = sorted(path.parent.name for path in stages_of_seed.glob("policies/*/stage.json"))
    if resolved.generator.checkpoint:
        known.append(stages.BASE)
    if policy not in known:
        raise ConfigError(f"--policy={policy}: {stages_of_seed} has the policies {', '.join(known) or '(none)'}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--output={output}: the folder is not empty; give a new one")
    with open_run(workdir, resolved) as root:
        run = open_seed(resolved, seed, root, make_mesh(resolved.mesh))
        if policy == stages.BASE:
            params = run.generator.load(run.mesh)
        else:
            params = stages.sft_model(run, run.generator)
            if policy != stages.SFT:
                params = stages.policy_loader(run, policy, params)()
        weights.save(folder, run.generator.shape, copy_to_host(merge(params), run.mesh), run.tokenizer)
        yield folder
        for split in sorted(run.problems):
            path = run.path(f"candidates/{policy}-{split}/candidates.parquet")
            if path.exists():
                written = folder / "samples" / f"{split}.jsonl"
                written.parent.mkdir(exist_ok=True)
                write_records(written, _labelled(run, policy, split, read_candidates(path)))
                yield written


def _labelled(run: SeedRun, policy: str, split: str, candidates: Sequence[Candidate]) -> Iterator[LabelledSamples]:
    """The samples by problem, without those that the sandbox could not judge."""
    path = run.path(f"greedy/{policy}-{split}/candidates.parquet")
    greedy = {c.problem: c.passed for c in read_candidates(path)} if path.exists() else {}
    prompt_of = {p.name: p.prompt for p in run.problems[split].asked}
    for name, group in itertools.groupby(candidates, key=lambda c: c.problem):
        judged = [c for c in group if c.verdict != Verdict.SANDBOX_ERROR]
        texts, passed = tuple(c.completion for c in judged), tuple(c.passed for c in judged)
        yield LabelledSamples(name, prompt_of[name], texts, passed, greedy.get(name))


def rerank_command(folder: Path) -> str:
    """The command line that ranks the examples of an export, from this process's working directory."""
    script = Path(sys.executable).with_name("rerankjax")
    program = [os.path.relpath(script)] if script.exists() else [os.path.relpath(sys.executable), "-m", "rerankjax"]
    source = durable_path(folder)
    here = source if source == folder else Path("export")
    command = shlex.join([*program, "rerank", "--model", str(here), "--problems", str(here / EXAMPLES)])
    return command if here is source else f"{command}  # in a folder with a copy of {source}"

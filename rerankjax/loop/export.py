"""Exports a run's reranker in Hugging Face's format, with samples to try it on."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

from rerankjax.loop.config import ExperimentConfig
from rerankjax.loop.seed_run import SeedRun
from rerankjax.loop.stages import ParamsLoader
from rerankjax.model.lora import merge
from rerankjax.problems.jsonl import write_records
from rerankjax.reranker.saving import save_for_others
from rerankjax.results.evaluation import Evaluation
from rerankjax.run.hosts import copy_to_host, is_first
from rerankjax.run.rundir import durable_path

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


def rerank_command(folder: Path) -> str:
    """The command line that ranks the examples of an export, from this process's working directory."""
    script = Path(sys.executable).with_name("rerankjax")
    program = [os.path.relpath(script)] if script.exists() else [os.path.relpath(sys.executable), "-m", "rerankjax"]
    source = durable_path(folder)
    here = source if source == folder else Path("export")
    command = shlex.join([*program, "rerank", "--model", str(here), "--problems", str(here / EXAMPLES)])
    return command if here is source else f"{command}  # in a folder with a copy of {source}"

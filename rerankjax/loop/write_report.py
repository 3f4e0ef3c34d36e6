"""The end of a run: writes its results, its table and its report again from the stages' files."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rerankjax.candidates.candidate import read_candidates
from rerankjax.loop.config import ExperimentConfig
from rerankjax.problems.jsonl import write_text
from rerankjax.problems.problem import read_problems
from rerankjax.results import results
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.plots import Curve
from rerankjax.results.render import markdown, print_results
from rerankjax.results.report import HardNegative, RunFacts, StageCost, report
from rerankjax.results.summary import summarise
from rerankjax.run.metrics import read_metrics
from rerankjax.run.reads import flatten, semantic
from rerankjax.run.rundir import durable_path, stage_cost

PACKAGES = ("rerankjax", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
NEGATIVES = 12  # in the report's gallery


def write_report(root: Path, config: ExperimentConfig, evaluations: Sequence[Evaluation]) -> None:
    """Writes results.json, table.md and report.html into the run's directory `root`, and prints the table."""
    fields = flatten(config)
    digest = hashlib.sha256(json.dumps(semantic(fields), sort_keys=True).encode()).hexdigest()[:12]
    summary = summarise(evaluations, digest)
    results.save(summary, root / "results.json")
    write_text(root / "table.md", markdown(summary))
    seeds = [(seed, root / f"seed{seed}") for seed in config.seeds]
    run = RunFacts(
        command=shlex.join(["rerankjax", *sys.argv[1:]]),
        config=json.dumps({name: v for name, v in fields.items() if name != "assumptions"}, indent=2),
        stages={
            str(path.parent.relative_to(root)): _stage_cost(path.parent)
            for path in sorted(root.glob("seed*/**/stage.json"), key=lambda p: p.stat().st_mtime)
        },
        versions={"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        host=_processor(),
        assumptions=dict(config.assumptions),
    )
    ppo = [curve for seed, path in seeds for curve in _curves(seed, path, "policies/ppo*")]
    trained = [(seed, path, pattern) for seed, path in seeds for pattern in ("policies/sft", "rerankers/*")]
    losses = [curve for seed, path, pattern in trained for curve in _curves(seed, path, pattern)]
    every_seed = [negative for seed, path in seeds for negative in _negatives(config, seed, path)]
    negatives = sorted(every_seed, key=lambda negative: -negative.score)[:NEGATIVES]
    write_text(root / "report.html", report(summary, evaluations, run, ppo, losses, negatives))
    print_results(summary)
    print(f"report: {durable_path(root / 'report.html')}")


def _stage_cost(path: Path) -> StageCost:
    rows = read_metrics(path) if (path / "metrics.jsonl").is_file() else []
    real = [row["real_tokens"] for row in rows if "real_tokens" in row]
    return StageCost(*stage_cost(path), float(np.mean(real)) if real else None)


def _curves(seed: int, root: Path, pattern: str) -> list[Curve]:
    stages = sorted(path.parent for path in root.glob(f"{pattern}/metrics.jsonl"))
    return [Curve(path.name, seed, read_metrics(path)) for path in stages]


def _negatives(config: ExperimentConfig, seed: int, root: Path) -> list[HardNegative]:
    """The failing training samples of the first PPO policy that its reranker scored highest, one per problem."""
    first = config.first_iteration
    if not (root / f"scores/{first}/ppo-train/stage.json").is_file():
        return []
    sampled = read_candidates(root / "candidates" / "ppo-train" / "candidates.parquet")
    scores = np.load(root / f"scores/{first}/ppo-train/scores.npy")
    prompts = {p.name: p.prompt for p in read_problems(root / "problems" / "train.jsonl")}
    negatives: dict[str, HardNegative] = {}
    for i in np.argsort(-scores, kind="stable"):
        c = sampled[i]
        if not c.passed and c.problem not in negatives:
            prompt = prompts[c.problem]
            negatives[c.problem] = HardNegative(seed, c.problem, prompt, c.completion, float(scores[i]), c.detail)
        if len(negatives) == NEGATIVES:
            break
    return list(negatives.values())


def _processor() -> str:
    """The processor's name, from Linux, and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {os.cpu_count()} cores"

"""Stages that only selection rules and reports need; they read candidates of earlier stages.

seedN/outputs/POLICY-SPLIT          the programs' outputs on the prompts' inputs (outputs.parquet), and how many ran
seedN/log_probs/MODEL/POLICY-SPLIT  the log-probability under policy MODEL of each candidate of a policy
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rerankjax.candidates.candidate import Candidate
from rerankjax.loop import stages
from rerankjax.loop.config import ExperimentConfig
from rerankjax.loop.seed_run import SeedRun
from rerankjax.loop.stages import ParamsLoader
from rerankjax.problems.jsonl import write_text
from rerankjax.progress import progress
from rerankjax.reranker.rerank import LOG_PROBABILITY
from rerankjax.results.clusters import Executed, executed
from rerankjax.run.hosts import is_first
from rerankjax.run.metrics import write_real_tokens
from rerankjax.run.reads import whole
from rerankjax.run.rundir import stage_seconds
from rerankjax.verdicts.outputs import OutputCache, inputs_of, read_outputs, run_outputs, write_outputs


def outputs(run: SeedRun, policy: str, split: str, sampled: Sequence[Candidate]) -> Executed:
    """What a policy's candidates, grouped by problem, returned on inputs from their prompts.

    A problem's inputs depend only on its prompt, not on its tests.
    """
    problems = run.problems[split]
    made = run.config.selection.made_inputs
    inputs = {p.name: inputs_of(p.language, p.prompt, made) for p in problems.asked}

    def fill(directory: Path, config: ExperimentConfig) -> None:
        _ = config.selection.made_inputs
        known: OutputCache = {}
        for path in sorted(run.path("outputs").glob(f"[!.]*-{split}/outputs.parquet")):
            known |= read_outputs(path)
        programs = [(c.problem, c.completion) for c in sampled]
        with progress(f"seed {run.seed}: {policy}, outputs on {split}", len(set(programs)), "programs") as advance:
            outputs_of, runs = run_outputs(whole(config.sandbox), inputs, programs, problems.source, known, advance)
        write_outputs(directory / "outputs.parquet", outputs_of.values())
        write_text(directory / "runs.json", json.dumps({"runs": runs}) + "\n")

    path = run.stage(f"outputs/{policy}-{split}", [f"candidates/{policy}-{split}"], fill)
    outputs_of = read_outputs(path / "outputs.parquet")
    rows = [list(row) for _, row in itertools.groupby(sampled, lambda c: c.problem)]
    return executed(
        [[outputs_of[c.problem, c.completion].values for c in row] for row in rows],
        [inputs[row[0].problem].expected for row in rows],
        [[c.completion for c in row] for row in rows],
        json.loads((path / "runs.json").read_text(encoding="utf-8"))["runs"],
        stage_seconds(path),
    )


def log_probs(
    run: SeedRun, model: str, params: ParamsLoader, policy: str, split: str, candidates: Sequence[Candidate]
) -> np.ndarray:
    """log p(completion, end of text | prompt) of a policy's candidates under the policy `model`: nats, float32.

    A completion is tokenized again, without the text cut off at a stop token, so that two models score the same tokens.
    If these are not the sampled tokens, the value differs slightly from the one at sampling.
    """

    def fill(directory: Path, config: ExperimentConfig) -> None:
        shape, title = run.generator.shape, f"{policy}, log-probabilities under {model} on {split}"
        log_probabilities, real = stages.score_candidates(
            run, {"decoder": params()}, shape, LOG_PROBABILITY, split, candidates, title
        )
        write_real_tokens(directory, real)
        if is_first():
            np.save(directory / "log_probs.npy", log_probabilities)

    inputs = [stages.stage_of(run, model), f"candidates/{policy}-{split}"]
    path = run.stage(f"log_probs/{model}/{policy}-{split}", inputs, fill, everywhere=True)
    return np.load(path / "log_probs.npy")

"""The config of one row of the paper's table, checked: what is run, on which checkpoints and problems, and how.

All rows of a run directory have the same config but for the section `row`, so that they can share stages.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.loop.experiment import (
    CandidatesConfig,
    CheckpointsConfig,
    ConfigError,
    EarlyStoppingConfig,
    Experiment,
    MiningConfig,
    ProblemsConfig,
    SandboxConfig,
    TrainingConfig,
    build,
    check,
)
from rerankjax.model.config import ModelConfig
from rerankjax.model.lora import LoraConfig
from rerankjax.model.sharding import MeshConfig
from rerankjax.pairs.mining import ARMS
from rerankjax.policy.ppo import PPOConfig
from rerankjax.problems.problem import LANGUAGES, Problem
from rerankjax.problems.sources import load_problems
from rerankjax.reranker.bradley_terry import RerankerConfig
from rerankjax.results.paper import RUNS
from rerankjax.sandbox.multipl_e import CSHARP_LISTS

DECODINGS = ("greedy", "sampled", "reranked")
ANSWERS = ("sft", "policy")


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """name: of `table.paper.RUNS`. generator, reranker: sizes of `models`; the reranker's "" where there is none.

    decoding: "greedy" takes one sample, "sampled" any one of several, "reranked" the one that the reranker scores
    highest. second_iteration: how the dataset grows, one of `ARMS`, or "" for one iteration.
    """

    name: str
    generator: str
    decoding: str
    reranker: str = ""
    second_iteration: str = ""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """An instruct checkpoint: a folder, or a hub id at a revision; "" is the newest."""

    size: str
    checkpoint: str
    revision: str = ""


@dataclasses.dataclass(frozen=True)
class ProblemSource:
    """The arguments of `load_problems`; "{language}" in `source` and `config` becomes the language. "" is left out."""

    source: str
    benchmark: str
    config: str = ""
    split: str = ""
    revision: str = ""

    def load(self, language: str) -> tuple[Problem, ...]:
        """Raises ConfigError where `load_problems` raises something."""
        try:
            return load_problems(
                self.source.format(language=language),
                self.benchmark,
                config=self.config.format(language=language) or None,
                split=self.split or None,
                revision=self.revision or None,
                language=language,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"config, problems of {self.source}: {error}") from error


@dataclasses.dataclass(frozen=True)
class TrainingProblems:
    """Problems to train on: `train` at most, and `dev` of the same for PPO's early stopping.

    languages: that those of CodeContests are posed in, in turn. cases: at most so many a problem. overlap: words in a
    row that one may not share with an evaluation problem. `train_on_benchmarks` as in `ProblemsConfig`.
    """

    sources: tuple[ProblemSource, ...]
    languages: tuple[str, ...]
    train: int
    dev: int
    cases: int
    overlap: int
    train_on_benchmarks: bool


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What the table is of, and how answers to it are drawn.

    python: HumanEval. multipl_e: its translations. mbpp, mbpp_shots: its test problems, and those shown in prompts.
    problems: at most so many of each, 0 for all. samples: of which the reranker chooses, and of which "sampled" is the
    mean. answers: whose samples are reranked: the "sft" model's, or those of the "policy" of the last PPO.
    csharp_lists: C# tests "as-shipped", which no list passes, or "repaired".
    """

    python: ProblemSource
    multipl_e: ProblemSource
    mbpp: ProblemSource
    mbpp_shots: ProblemSource
    languages: tuple[str, ...]
    problems: int
    max_prompt_length: int
    samples: int
    temperature: float
    top_p: float
    answers: str
    csharp_lists: str


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """Samples of each training problem, and problems under way on the device at a time."""

    train: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class PaperConfig:
    """`dtype` is of the checkpoints' parameters; `remat` and `compute_dtype` as in ModelConfig; the rest as in
    Experiment. `sft_on_solutions`: stage A trains on the training problems' solutions, as far as they pass; else the
    instruct checkpoints are what it ends in."""

    row: RowConfig
    seed: int
    models: tuple[ModelSource, ...]
    dtype: str
    compute_dtype: str
    remat: str
    problems: TrainingProblems
    evaluation: EvaluationConfig
    max_prompt_length: int
    sampling: SamplingConfig
    sft_on_solutions: bool
    sft: TrainingConfig
    candidates: SamplesConfig
    reranker: RerankerConfig
    reranker_training: TrainingConfig
    retraining: TrainingConfig
    ppo: PPOConfig
    early_stopping: EarlyStoppingConfig
    mining: MiningConfig
    lora: LoraConfig
    sandbox: SandboxConfig
    mesh: MeshConfig
    checkpoints: CheckpointsConfig

    def model(self, size: str) -> ModelSource:
        return next(model for model in self.models if model.size == size)

    def experiment(self, model: ModelConfig) -> Experiment:
        """The loop's own config, for one of the models; what it has for the made-up family says nothing here."""
        shared = {f.name for f in dataclasses.fields(Experiment)} & {f.name for f in dataclasses.fields(self)}
        same = {name: getattr(self, name) for name in shared - {"problems", "candidates"}}
        p = self.problems
        return Experiment(
            seeds=(self.seed,),
            model=dataclasses.replace(model, remat=self.remat, compute_dtype=self.compute_dtype),
            problems=ProblemsConfig(p.train, p.dev, 1, 1, 0.0, 0.0, p.train_on_benchmarks, p.languages),
            candidates=CandidatesConfig(self.candidates.train, 1, self.evaluation.samples, self.candidates.batch_size),
            arms=(),
            ppo_arms=(),
            lambdas=(0.0,),
            **same,
        )

    def answering(self, e: Experiment) -> Experiment:
        """`e` as evaluation problems are sampled: with their own lengths, temperature and number of samples."""
        v, greedy = self.evaluation, self.row.decoding == "greedy"
        sampling = dataclasses.replace(
            e.sampling, temperature=0.0 if greedy else v.temperature, top_p=1.0 if greedy else v.top_p
        )
        candidates = dataclasses.replace(e.candidates, test=1 if greedy else v.samples)
        return dataclasses.replace(e, sampling=sampling, candidates=candidates, max_prompt_length=v.max_prompt_length)


# Whatever the checkpoints' shapes: what is checked before they are loaded.
_ANY_MODEL = ModelConfig(2, 2, 2, 1, 1, 1, 2, 1 << 30)


def resolve_row(config: Mapping[str, Any], devices: int) -> PaperConfig:
    """The checked config, for a mesh of `devices`.

    Raises:
        ConfigError: a field is missing, unknown, of another type or impossible; it is named, with what to do.
    """
    p = build(PaperConfig, config, "config")

    def require(holds: bool, field: str, value: object, remedy: str) -> None:
        if not holds:
            raise ConfigError(f"config.{field} = {value!r}: {remedy}")

    row, v, sizes = p.row, p.evaluation, [model.size for model in p.models]
    reranked = row.decoding == "reranked"
    iterations = ("", *ARMS) if reranked else ("",)
    for field, value, known in (
        ("row.name", row.name, RUNS),
        ("row.generator", row.generator, sizes),
        ("row.decoding", row.decoding, DECODINGS),
        ("row.reranker", row.reranker, sizes if reranked else ("",)),
        ("row.second_iteration", row.second_iteration, iterations),
        ("evaluation.answers", v.answers, ANSWERS),
        ("evaluation.csharp_lists", v.csharp_lists, CSHARP_LISTS),
    ):
        require(value in known, field, value, f"use one of {', '.join(map(repr, known))}")
    require(len(set(sizes)) == len(sizes), "models", sizes, "give each size once")
    languages = v.languages
    each_once = bool(languages) and set(languages) <= set(LANGUAGES) and len(set(languages)) == len(languages)
    require(each_once, "evaluation.languages", languages, f"give one or more of {', '.join(LANGUAGES)}, each once")
    require(bool(p.problems.sources), "problems.sources", (), "give at least one")
    for field, value, least in (
        ("problems.cases", p.problems.cases, 1),
        ("problems.overlap", p.problems.overlap, 3),
        ("evaluation.problems", v.problems, 0),
        ("evaluation.samples", v.samples, 1),
        ("evaluation.max_prompt_length", v.max_prompt_length, 1),
    ):
        require(value >= least, field, value, f"use {least} or more")
    require(v.temperature > 0, "evaluation.temperature", v.temperature, "equal samples leave no choice; raise it")
    require(0 < v.top_p <= 1, "evaluation.top_p", v.top_p, "a share lies in (0, 1]")
    try:
        jnp.dtype(p.dtype)
        e = p.experiment(_ANY_MODEL)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {error}") from error
    check(e, devices)
    return p


def shared(p: PaperConfig) -> dict[str, Any]:
    """What all rows of a run directory have in common, as JSON values: everything but the row."""
    return {name: value for name, value in dataclasses.asdict(p).items() if name != "row"}

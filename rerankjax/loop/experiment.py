"""An experiment's config, checked: an ml-collections tree in, frozen dataclasses out, errors before any work.

The dataclasses are the schema: `configs/` gives every field a value, and a field that is missing, unknown, of another
type or impossible is a `ConfigError` that names it, its value and what to do.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.config import ModelConfig
from rerankjax.model.lora import FULL, LoraConfig
from rerankjax.model.sharding import ALL_DATA, MeshConfig
from rerankjax.model.training import OptimizerConfig
from rerankjax.pairs.mining import ARMS
from rerankjax.policy.ppo import PPOConfig
from rerankjax.problems.languages import LANGUAGES
from rerankjax.reranker.bradley_terry import RerankerConfig
from rerankjax.verdicts.execution import SandboxConfig


class ConfigError(ValueError):
    """A config that cannot run."""


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """The made-up family: problems a split, solutions in the SFT corpus, how often those are wrong, and in what.

    `train_on_benchmarks` lets evaluation problems be trained on, which voids a table of them.
    """

    train: int
    dev: int
    test: int
    corpus: int
    fault_probability: float
    slip_probability: float
    train_on_benchmarks: bool = False
    languages: tuple[str, ...] = ("py",)  # MultiPL-E's short names; the problems take turns


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    batch_size: int  # examples, or pairs, an update
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class CandidatesConfig:
    """Samples a problem on each split, and problems under way on the device at a time.

    Of the train split the first `train_problems` are sampled and executed, 0: all; SFT and PPO use all of it.
    """

    train: int
    dev: int
    test: int
    batch_size: int
    train_problems: int = 0


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """`pairs` of the first reranker; the second's: `grown_pairs`, of which `new_share` have a negative of the policy's;
    "hard" ones are the `hard_share` of its failures that the reranker scores highest."""

    pairs: int
    grown_pairs: int
    new_share: float
    hard_share: float


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """PPO keeps its best policy by dev pass@1, measured with `samples` a problem every `every` iterations."""

    every: int
    samples: int


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
    """Training that is cut goes on from the last checkpoint: one every so many steps, PPO's iterations; `keep` stay."""

    steps: int = 100
    iterations: int = 5
    keep: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: use 1 or more")


CHECKPOINTS = CheckpointsConfig()


@dataclasses.dataclass(frozen=True)
class Experiment:
    seeds: tuple[int, ...]
    problems: ProblemsConfig
    max_prompt_length: int  # tokens
    model: ModelConfig
    sampling: SamplingConfig
    sft: TrainingConfig
    candidates: CandidatesConfig
    reranker: RerankerConfig
    reranker_training: TrainingConfig
    retraining: TrainingConfig  # of the second iteration's rerankers, from the first
    ppo: PPOConfig
    early_stopping: EarlyStoppingConfig
    mining: MiningConfig
    arms: tuple[str, ...]  # whose rerankers the second iteration trains
    ppo_arms: tuple[str, ...]  # of those, for which PPO runs again from the SFT model
    lambdas: tuple[float, ...]  # tried on the dev split for reranker + lambda * log-probability
    sandbox: SandboxConfig
    mesh: MeshConfig = ALL_DATA  # of the devices
    checkpoints: CheckpointsConfig = CHECKPOINTS
    lora: LoraConfig = FULL  # rerankers and policies as adapters over the SFT model, or trained whole


def resolve(config: Mapping[str, Any], devices: int) -> Experiment:
    """The checked experiment, for a mesh of `devices`.

    Raises:
        ConfigError: as the module says.
    """
    experiment = build(Experiment, config, "config")
    check(experiment, devices)
    return experiment


def build(kind: type, section: Any, path: str) -> Any:
    """The dataclass `kind` of a config's section; `path` is what errors call it. Raises ConfigError."""
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise ConfigError(f"{path} = {section!r} is no section: it holds the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    given = dict(section.items())
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    for name in given.keys() - hints.keys():
        raise ConfigError(f"{path}.{name} is unknown: {path} has {', '.join(sorted(hints))}")
    for name in sorted(hints.keys() - given.keys() - optional):
        raise ConfigError(f"{path}.{name} is missing: give it a value")
    values = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path} = {value!r} is no tuple: write it as (a, b)")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} = {value!r} is {type(value).__name__}: give a {hint.__name__}")
    return value


def check(e: Experiment, devices: int) -> None:
    """Raises ConfigError unless the experiment can run on a mesh of `devices`."""

    def require(holds: bool, field: str, value: object, remedy: str) -> None:
        if not holds:
            raise ConfigError(f"config.{field} = {value}: {remedy}")

    try:
        shape = e.mesh.shape(devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh.{error}") from error
    devices = shape["data"] * shape["fsdp"]
    context = e.max_prompt_length + e.sampling.max_completion_length
    require(
        context < e.model.max_position_embeddings,
        "model.max_position_embeddings",
        e.model.max_position_embeddings,
        f"max_prompt_length + sampling.max_completion_length = {context} and an end-of-text token do not fit; "
        f"raise it to {context + 1} or shorten those",
    )
    minibatch = e.ppo.batch_size // e.ppo.minibatches
    for field, value in {
        "sft.batch_size": e.sft.batch_size,
        "reranker_training.batch_size": e.reranker_training.batch_size,
        "retraining.batch_size": e.retraining.batch_size,
        "candidates.batch_size": e.candidates.batch_size,
        "ppo.batch_size / minibatches": minibatch,
    }.items():
        require(
            value > 0 and value % devices == 0,
            field,
            value,
            f"not a positive multiple of the {devices} devices that share a batch; "
            f"use {max(1, round(value / devices)) * devices}",
        )
    for field, value in {
        "problems.train": e.problems.train,
        "problems.dev": e.problems.dev,
        "problems.test": e.problems.test,
        "problems.corpus": e.problems.corpus,
        "candidates.train": e.candidates.train,
        "candidates.dev": e.candidates.dev,
        "candidates.test": e.candidates.test,
        "mining.pairs": e.mining.pairs,
        "mining.grown_pairs": e.mining.grown_pairs,
        "early_stopping.every": e.early_stopping.every,
        "early_stopping.samples": e.early_stopping.samples,
        "sandbox.workers": e.sandbox.workers,
    }.items():
        require(value > 0, field, value, "use 1 or more")
    languages = e.problems.languages
    require(
        bool(languages) and len(set(languages)) == len(languages) and set(languages) <= LANGUAGES.keys(),
        "problems.languages",
        languages,
        f"give one or more of {', '.join(LANGUAGES)}, each once",
    )
    require(
        0 <= e.candidates.train_problems <= e.problems.train,
        "candidates.train_problems",
        e.candidates.train_problems,
        f"sample 1 to problems.train = {e.problems.train} problems, or 0 for all",
    )
    require(
        e.ppo.batch_size <= e.problems.train,
        "ppo.batch_size",
        e.ppo.batch_size,
        f"an iteration takes each prompt once, and problems.train = {e.problems.train}; lower it",
    )
    require(e.sampling.top_p == 1.0, "sampling.top_p", e.sampling.top_p, "PPO learns from whole distributions; use 1.0")
    require(e.sampling.top_k == 0, "sampling.top_k", e.sampling.top_k, "PPO learns from whole distributions; use 0")
    require(
        e.sampling.temperature > 0, "sampling.temperature", e.sampling.temperature, "greedy never explores; raise it"
    )
    for name in ("new_share", "hard_share"):
        value = getattr(e.mining, name)
        require(0 < value <= 1, f"mining.{name}", value, "a share lies in (0, 1]")
    require(bool(e.seeds) and len(set(e.seeds)) == len(e.seeds), "seeds", e.seeds, "give different seeds, at least one")
    require(bool(e.lambdas), "lambdas", e.lambdas, "give at least one, such as 0.0")
    for arm in e.arms:
        require(arm in ARMS, "arms", arm, f"unknown; use some of {', '.join(ARMS)}")
    for arm in e.ppo_arms:
        require(arm in e.arms, "ppo_arms", arm, "its reranker is not trained; add it to arms")

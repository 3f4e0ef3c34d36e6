"""The config of a run: an ml-collections tree in, frozen dataclasses out, errors before any work.

The dataclasses are the schema. A file of `configs/` gives their fields values; `build` refuses a field that is missing,
unknown, mistyped or impossible with a `ConfigError` that names it, its value and the remedy. What concerns several
fields is checked by `check`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.config import ATTENTIONS, COMPUTE_DTYPES, REMATS, ModelConfig
from rerankjax.model.lora import FULL, LoraConfig
from rerankjax.model.sharding import ALL_DATA, MeshConfig
from rerankjax.model.training import OptimizerConfig
from rerankjax.pairs.mining import PAIR_SOURCES
from rerankjax.policy.ppo import PPOConfig
from rerankjax.problems.sources import HELD_OUT, SYNTHETIC, SourceConfig
from rerankjax.prompts.ask import PromptConfig
from rerankjax.reranker.bradley_terry import RerankerConfig
from rerankjax.sandbox.multipl_e import CSHARP_LISTS
from rerankjax.verdicts.execution import SandboxConfig


class ConfigError(ValueError):
    """A config that cannot run."""


# How a model is computed, whatever it is: fields of `ModelSource` and of `ModelConfig`.
COMPUTATION = ("compute_dtype", "remat", "attention", "unroll")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: a `checkpoint`, or a `shape` that is trained from scratch.

    checkpoint: a Hugging Face folder, or a hub id at `revision` ("": the newest). dtype: of its parameters. The last
    four are `ModelConfig`'s.
    """

    checkpoint: str = ""
    revision: str = ""
    shape: ModelConfig | None = None
    dtype: str = "float32"
    compute_dtype: str = ""
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.checkpoint and self.shape is not None:
            raise ValueError(f"checkpoint = {self.checkpoint!r}: there is a shape too; give one of them")
        for name in COMPUTATION if self.shape is not None else ():
            if getattr(self.shape, name) != getattr(ModelConfig, name):
                raise ValueError(f"shape.{name} = {getattr(self.shape, name)!r}: give it beside shape, not in it")
        for name, known in (("compute_dtype", COMPUTE_DTYPES), ("remat", REMATS), ("attention", ATTENTIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is unknown: use one of {', '.join(map(repr, known))}"
                )
        if self.shape is not None:
            self.computed(self.shape)
        try:
            jnp.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"dtype = {self.dtype!r}: {error}") from error

    @property
    def given(self) -> bool:
        return bool(self.checkpoint) or self.shape is not None

    def computed(self, shape: ModelConfig) -> ModelConfig:
        """`shape` with this source's way to compute it."""
        return dataclasses.replace(shape, **{name: getattr(self, name) for name in COMPUTATION})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerSource(ModelSource):
    """Without checkpoint and shape the reranker starts from the generator after SFT. The rest is `RerankerConfig`."""

    pooling: str = "last"
    lm_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.loss
        for field in dataclasses.fields(ModelSource) if not self.given else ():
            if getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} = {getattr(self, field.name)!r}: without a checkpoint or shape the reranker is "
                    f"computed as the generator; set generator.{field.name}"
                )

    @property
    def loss(self) -> RerankerConfig:
        return RerankerConfig(self.pooling, self.lm_coef)


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic family: problems a split, solutions in its SFT corpus, and how often those are wrong.

    languages: MultiPL-E's short names; the problems take turns.
    """

    train: int
    dev: int
    test: int
    corpus: int
    fault_probability: float = 0.6
    slip_probability: float = 0.1
    languages: tuple[str, ...] = ("py",)


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """Where training problems come from.

    train, dev: their sources. Without sources for dev, `dev_problems` of the training problems are set aside, and
    `test_problems` for the evaluation set whose source is "held_out".
    max_train: of the training problems at most so many, 0: all. max_test_cases: a problem's, 0: all.
    decontamination_ngram: a problem that shares so many words in a row with an evaluation problem is removed, 0: none.
    train_on_benchmarks: lets evaluation problems be trained on, which voids a table of them.
    """

    train: tuple[SourceConfig, ...]
    dev: tuple[SourceConfig, ...] = ()
    dev_problems: int = 0
    test_problems: int = 0
    synthetic: SyntheticConfig | None = None
    max_train: int = 0
    max_test_cases: int = 0
    decontamination_ngram: int = 10
    train_on_benchmarks: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    batch_size: int  # examples, or pairs, an update
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Stage A learns the synthetic family's corpus and the training problems' own solutions that pass their tests.

    `enabled` False leaves the generator, and a reranker of its own, as their checkpoints are.
    """

    enabled: bool = True


@dataclasses.dataclass(frozen=True)
class CandidatesConfig:
    """Samples per training and dev problem, and the prompts in flight on the device.

    Of the training problems the first `train_problems` are sampled and executed, 0: all; SFT and PPO use all of them.
    """

    train: int
    dev: int
    prompts_in_flight: int
    train_problems: int = 0


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """`pairs` of the first reranker; of a later one `later_pairs`, of which `new_fraction` have a negative of the
    policy's; "hard" ones are the `hard_fraction` of its failures that the reranker scores highest."""

    pairs: int
    later_pairs: int
    new_fraction: float
    hard_fraction: float


# Names of policies, of a stage beside iterations' rerankers, and of files beside evaluation sets' problems.
TAKEN_ITERATIONS = ("base", "sft", "ppo")
TAKEN_SETS = ("train", "dev", "corpus", "removed")
SAMPLED = "sampled"  # the first iteration's: the SFT model's samples and given solutions


@dataclasses.dataclass(frozen=True)
class IterationConfig:
    """One iteration: pairs, a reranker trained on them, and with `ppo` a policy trained against it from the SFT model.

    pairs: `SAMPLED` for the first iteration, else one of `PAIR_SOURCES`. after: the iteration whose policy's samples
    are mined, scored by its reranker; "" for the first. run: False leaves it out, as a flag can.
    """

    pairs: str
    ppo: bool
    after: str = ""
    run: bool = True


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """PPO keeps its best policy by dev pass@1, measured with `samples` a problem every `every` iterations."""

    every: int
    samples: int


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
    """Training that is interrupted resumes from the last checkpoint: one every so many steps, PPO's iterations."""

    steps: int = 100
    iterations: int = 5
    keep: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: use 1 or more")


CHECKPOINTS = CheckpointsConfig()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """A named set of problems that the systems are compared on, and how they are asked and sampled.

    samples: per problem, from which the reranker chooses; a greedy answer is drawn beside them. max_problems: 0: all.
    sampling, max_prompt_length, prompts: None and 0: as in training. csharp_lists: C# tests "as-shipped", which no list
    passes, or "repaired".
    """

    sources: tuple[SourceConfig, ...]
    samples: int
    max_problems: int = 0
    sampling: SamplingConfig | None = None
    max_prompt_length: int = 0
    prompts: PromptConfig | None = None
    csharp_lists: str = "repaired"


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A whole run. `evaluation` and `iterations` are by name; lengths are in tokens."""

    seeds: tuple[int, ...]
    generator: ModelSource
    reranker: RerankerSource
    problems: ProblemsConfig
    prompts: PromptConfig
    max_prompt_length: int
    sampling: SamplingConfig  # of training's samples
    sft: SFTConfig
    candidates: CandidatesConfig
    reranker_training: TrainingConfig
    retraining: TrainingConfig  # of a later iteration's reranker, from the one before
    ppo: PPOConfig
    early_stopping: EarlyStoppingConfig
    mining: MiningConfig
    iterations: Mapping[str, IterationConfig]
    evaluation: Mapping[str, EvaluationConfig]
    log_prob_weights: tuple[float, ...]  # tried on the dev split for reranker + weight * log-probability
    sandbox: SandboxConfig
    mesh: MeshConfig = ALL_DATA  # of the devices
    checkpoints: CheckpointsConfig = CHECKPOINTS
    lora: LoraConfig = FULL  # rerankers and policies as adapters over the SFT model, or trained whole
    assumptions: tuple[tuple[str, str], ...] = ()  # (field, why it has its value), for the report

    def later_iterations(self) -> list[tuple[str, IterationConfig]]:
        """The iterations behind the first that run, each behind the one it mines, else in `PAIR_SOURCES`' order."""

        def place(item: tuple[str, IterationConfig]) -> tuple[int, int, str]:
            name, iteration = item
            return self.depth_of(name), PAIR_SOURCES.index(iteration.pairs), name

        return sorted(((n, i) for n, i in self.iterations.items() if i.after and i.run), key=place)

    def depth_of(self, name: str) -> int:
        """1 for the first iteration, 2 for those behind it, and so on."""
        after = self.iterations[name].after
        return 1 + self.depth_of(after) if after else 1

    @property
    def first_iteration(self) -> str | None:
        """The name of the iteration on the SFT model's samples, None where the run only evaluates."""
        return next((name for name, i in self.iterations.items() if not i.after and i.run), None)


def sampling_of(config: ExperimentConfig, name: str) -> tuple[SamplingConfig, int]:
    """How the evaluation set `name` is sampled, and the longest prompt it may have."""
    own = config.evaluation[name]
    return own.sampling or config.sampling, own.max_prompt_length or config.max_prompt_length


RENAMED = {
    "model": "generator.shape",
    "arms": "iterations",
    "ppo_arms": "iterations.NAME.ppo",
    "lambdas": "log_prob_weights",
    "candidates.batch_size": "candidates.prompts_in_flight",
    "candidates.test": "evaluation.NAME.samples",
    "mining.grown_pairs": "mining.later_pairs",
    "mining.new_share": "mining.new_fraction",
    "mining.hard_share": "mining.hard_fraction",
    "problems.languages": "problems.synthetic.languages",
    "problems.corpus": "problems.synthetic.corpus",
    "problems.test": "problems.synthetic.test",
}


def resolve(config: Mapping[str, Any], devices: int) -> ExperimentConfig:
    """The checked config, for a mesh of `devices`.

    Raises:
        ConfigError: as the module says.
    """
    built: ExperimentConfig = build(ExperimentConfig, config, "config")
    check(built, devices)
    return built


def build(kind: type, section: Any, path: str) -> Any:
    """The dataclass `kind` of a config's section; `path` is what errors call it. Raises ConfigError."""
    if kind is SourceConfig and isinstance(section, str):
        section = {"source": section}
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise ConfigError(f"{path} = {section!r} is no section: it holds the fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    given = dict(section.items())
    fields = dataclasses.fields(kind)
    optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
    for name in given.keys() - hints.keys():
        old = f"{path}.{name}".removeprefix("config.")
        remedy = f"is called {RENAMED[old]} now" if old in RENAMED else f"is unknown: {path} has {_listed(hints)}"
        raise ConfigError(f"{path}.{name} {remedy}")
    for name in sorted(hints.keys() - given.keys() - optional):
        raise ConfigError(f"{path}.{name} is missing: give it a value")
    values = {name: _convert(hints[name], value, f"{path}.{name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error


def _listed(hints: Mapping[str, Any]) -> str:
    return ", ".join(sorted(hints))


def _convert(hint: Any, value: Any, path: str) -> Any:
    arguments = typing.get_args(hint)
    if types.NoneType in arguments:
        return None if value is None else _convert(arguments[0], value, path)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Mapping:
        if not hasattr(value, "items"):
            raise ConfigError(f"{path} = {value!r} is no section: it holds a section for each name")
        return {str(name): _convert(arguments[1], item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(hint, types.GenericAlias):  # tuple[item, ...]
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path} = {value!r} is no tuple: write it as (a, b)")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} = {value!r} is {type(value).__name__}: give a {hint.__name__}")
    return value


def require(holds: bool, field: str, value: object, remedy: str) -> None:
    """Raises ConfigError that names `config.field`, its value and the remedy unless `holds`."""
    if not holds:
        raise ConfigError(f"config.{field} = {value}: {remedy}")


def check(config: ExperimentConfig, devices: int) -> None:
    """Raises ConfigError unless the config can run on a mesh of `devices`, as far as can be told without its models
    and problems."""
    try:
        shape = config.mesh.shape(devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh.{error}") from error
    _check_batches(config, shape["data"] * shape["fsdp"])
    _check_numbers(config)
    _check_iterations(config)
    _check_problems(config)
    require(config.generator.given, "generator.checkpoint", "''", "give a checkpoint, or a shape to train from scratch")
    require(
        bool(config.generator.checkpoint) or config.sft.enabled,
        "sft.enabled",
        False,
        "a generator from scratch knows nothing before SFT; use True, or give generator.checkpoint",
    )
    for name, source in (("generator", config.generator), ("reranker", config.reranker)):
        if source.shape is not None:
            check_context(config, source.shape, f"{name}.shape.max_position_embeddings")
    sampling = config.sampling
    require(sampling.top_p == 1.0, "sampling.top_p", sampling.top_p, "PPO learns from whole distributions; use 1.0")
    require(sampling.top_k == 0, "sampling.top_k", sampling.top_k, "PPO learns from whole distributions; use 0")
    require(sampling.temperature > 0, "sampling.temperature", sampling.temperature, "greedy never explores; raise it")
    seeds = config.seeds
    require(bool(seeds) and len(set(seeds)) == len(seeds), "seeds", seeds, "give different seeds, at least one")
    require(bool(config.log_prob_weights), "log_prob_weights", (), "give at least one, such as 0.0")


def check_context(config: ExperimentConfig, model: ModelConfig, field: str) -> None:
    """Raises ConfigError unless a model's context holds the longest prompt, completion and an end-of-text token."""
    lengths = [(config.sampling, config.max_prompt_length), *(sampling_of(config, name) for name in config.evaluation)]
    longest = max(prompt + sampling.max_completion_length for sampling, prompt in lengths)
    require(
        longest < model.max_position_embeddings,
        field,
        model.max_position_embeddings,
        f"max_prompt_length + sampling.max_completion_length = {longest} and an end-of-text token do not fit; raise it "
        f"to {longest + 1} or shorten those",
    )


def _check_batches(config: ExperimentConfig, devices: int) -> None:
    for field, value in {
        "sft.batch_size": config.sft.batch_size,
        "reranker_training.batch_size": config.reranker_training.batch_size,
        "retraining.batch_size": config.retraining.batch_size,
        "candidates.prompts_in_flight": config.candidates.prompts_in_flight,
        "ppo.batch_size / minibatches": config.ppo.batch_size // config.ppo.minibatches,
    }.items():
        require(
            value > 0 and value % devices == 0,
            field,
            value,
            f"not a positive multiple of the {devices} devices that share a batch; "
            f"use {max(1, round(value / devices)) * devices}",
        )


def _check_numbers(config: ExperimentConfig) -> None:
    least = {
        "max_prompt_length": (config.max_prompt_length, 1),
        "candidates.train": (config.candidates.train, 1),
        "candidates.dev": (config.candidates.dev, 1),
        "candidates.train_problems": (config.candidates.train_problems, 0),
        "mining.pairs": (config.mining.pairs, 1),
        "mining.later_pairs": (config.mining.later_pairs, 1),
        "early_stopping.every": (config.early_stopping.every, 1),
        "early_stopping.samples": (config.early_stopping.samples, 1),
        "problems.dev_problems": (config.problems.dev_problems, 0),
        "problems.test_problems": (config.problems.test_problems, 0),
        "problems.max_train": (config.problems.max_train, 0),
        "problems.max_test_cases": (config.problems.max_test_cases, 0),
    }
    for name, evaluation in config.evaluation.items():
        least[f"evaluation.{name}.samples"] = evaluation.samples, 1
        least[f"evaluation.{name}.max_problems"] = evaluation.max_problems, 0
        least[f"evaluation.{name}.max_prompt_length"] = evaluation.max_prompt_length, 0
    for field, (value, smallest) in least.items():
        require(value >= smallest, field, value, f"use {smallest} or more")
    for name in ("new_fraction", "hard_fraction"):
        value = getattr(config.mining, name)
        require(0 < value <= 1, f"mining.{name}", value, "a fraction lies in (0, 1]")


def _check_iterations(config: ExperimentConfig) -> None:
    starts = [name for name, iteration in config.iterations.items() if not iteration.after]
    require(
        len(starts) == 1 or not config.iterations,
        "iterations",
        starts,
        f"just one has no `after`, on pairs {SAMPLED!r}: the others say whose policy's samples they mine",
    )
    for name, iteration in config.iterations.items():
        field = f"iterations.{name}"
        require(name.isidentifier(), field, "...", "its name becomes a directory's: use letters, digits and _")
        require(name not in TAKEN_ITERATIONS, field, "...", "it is a policy's or a stage's name; rename it")
        known = PAIR_SOURCES if iteration.after else (SAMPLED,)
        require(iteration.pairs in known, f"{field}.pairs", repr(iteration.pairs), f"use one of {', '.join(known)}")
        if not iteration.after:
            continue
        seen, parent = {name}, iteration.after
        while parent:
            require(parent in config.iterations, f"{field}.after", repr(parent), "there is no such iteration")
            require(parent not in seen, f"{field}.after", repr(parent), "they follow each other in a circle")
            seen.add(parent)
            parent = config.iterations[parent].after
        before = config.iterations[iteration.after]
        runs = not iteration.run or (before.run and before.ppo)
        require(runs, f"{field}.after", repr(iteration.after), "that one trains no policy; set its ppo and run to True")


def _check_problems(config: ExperimentConfig) -> None:
    problems, synthetic = config.problems, config.problems.synthetic
    sets = {"problems.train": problems.train, "problems.dev": problems.dev}
    shots = {"prompts.shots": config.prompts.shots}
    for name, evaluation in config.evaluation.items():
        sets[f"evaluation.{name}.sources"] = evaluation.sources
        if evaluation.prompts:
            shots[f"evaluation.{name}.prompts.shots"] = evaluation.prompts.shots
        require(name.isidentifier(), f"evaluation.{name}", "...", "its name becomes a directory's: use letters, digits")
        taken = "it is a training split's or another file's name; rename it"
        require(name not in TAKEN_SETS, f"evaluation.{name}", "...", taken)
        require(bool(evaluation.sources), f"evaluation.{name}.sources", "()", "give at least one")
        value = evaluation.csharp_lists
        require(value in CSHARP_LISTS, f"evaluation.{name}.csharp_lists", value, f"use {' or '.join(CSHARP_LISTS)}")
    require(bool(config.evaluation), "evaluation", "{}", "give at least one set of problems")
    for field, sources in sets.items():
        wanted = any(source.source == SYNTHETIC for source in sources)
        require(synthetic is not None or not wanted, field, SYNTHETIC, "give problems.synthetic its sizes")
    for field, sources in shots.items():
        for source in sources:
            named = source.source not in (SYNTHETIC, HELD_OUT)
            require(named, field, source.source, "shots are of a file or a dataset; name it")
    for field, sources in sets.items():
        wanted = any(source.source == HELD_OUT for source in sources)
        given = field.startswith("evaluation.") and problems.test_problems > 0
        require(given or not wanted, field, HELD_OUT, "it is for an evaluation set, of problems.test_problems problems")
    if synthetic is not None:
        try:
            SourceConfig(SYNTHETIC, languages=synthetic.languages)
        except ValueError as error:
            raise ConfigError(f"config.problems.synthetic.{error}") from error
        for name in ("train", "dev", "test", "corpus"):
            value = getattr(synthetic, name)
            require(value > 0, f"problems.synthetic.{name}", value, "use 1 or more")
    ngram = problems.decontamination_ngram
    require(ngram == 0 or ngram >= 3, "problems.decontamination_ngram", ngram, "use 3 or more, or 0 to remove none")
    if not config.iterations and not config.sft.enabled:
        return
    require(bool(problems.train), "problems.train", "()", "give at least one source")
    require(
        bool(problems.dev) or problems.dev_problems > 0,
        "problems.dev_problems",
        problems.dev_problems,
        "PPO's early stopping needs dev problems: set some aside, or give problems.dev",
    )

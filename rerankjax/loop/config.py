"""The config of a run: an ml-collections tree in, frozen dataclasses out, errors before any work.

The dataclasses are the schema. A file in `configs/` sets their fields. If a field is missing, unknown, mistyped or
impossible, `resolve.build` raises a `ConfigError` that names the field, its value and the remedy. `checks` has the
checks across several fields.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rerankjax.candidates.sampling import SamplingConfig
from rerankjax.model.config import ATTENTIONS, COMPUTE_DTYPES, REMATS, ModelConfig
from rerankjax.model.lora import FULL, LoraConfig
from rerankjax.model.products import fastest_dtype
from rerankjax.model.sharding import ALL_DATA, MeshConfig
from rerankjax.model.training import OptimizerConfig
from rerankjax.pairs.mining import PAIR_SOURCES
from rerankjax.policy.ppo import PPOConfig
from rerankjax.problems.sources import SourceConfig
from rerankjax.prompts.ask import PromptConfig
from rerankjax.reranker.bradley_terry import RerankerConfig
from rerankjax.reranker.ensembles import ENSEMBLES
from rerankjax.verdicts.execution import SandboxConfig
from rerankjax.verdicts.outputs import MOST_MADE


class ConfigError(ValueError):
    """A config that cannot run."""


# How a model is computed: the fields that `ModelSource` and `ModelConfig` share.
COMPUTATION = ("compute_dtype", "remat", "attention", "unroll")
KNOWN = {"compute_dtype": ("auto", *COMPUTE_DTYPES), "remat": REMATS, "attention": ATTENTIONS}


def computed(section: Any, shape: ModelConfig) -> ModelConfig:
    """`shape` with the `COMPUTATION` fields, which are `ModelConfig`'s, of a config's section.

    The section's compute_dtype can also be "auto": `fastest_dtype`'s, on this machine.
    """
    fields = {name: getattr(section, name) for name in COMPUTATION}
    if fields["compute_dtype"] == "auto":
        fields["compute_dtype"] = fastest_dtype()
    return dataclasses.replace(shape, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from: a `checkpoint`, or a `shape` that is trained from scratch.

    checkpoint: a Hugging Face folder, or a hub id at `revision` ("": the newest). dtype: of the parameters. For the
    last four fields see `ModelConfig`; compute_dtype can be "auto": bfloat16, but the parameters' type on a CPU that
    computes bfloat16 in float32. A run keeps the type that it began with, also where it resumes on another machine.
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
            raise ValueError(f"checkpoint = {self.checkpoint!r}: a shape is given too; give only one of them")
        for name in COMPUTATION if self.shape is not None else ():
            if getattr(self.shape, name) != getattr(ModelConfig, name):
                raise ValueError(f"shape.{name} = {getattr(self.shape, name)!r}: set {name} outside of shape")
        for name, known in KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is unknown: use one of {', '.join(map(repr, known))}"
                )
        if self.shape is not None:
            computed(self, self.shape)
        try:
            jnp.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"dtype = {self.dtype!r}: {error}") from error

    @property
    def given(self) -> bool:
        return bool(self.checkpoint) or self.shape is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerSource(ModelSource):
    """Without checkpoint and shape the reranker starts from the generator after SFT.

    pooling, lm_coef: see `RerankerConfig`. members: with more than one, each iteration trains this many from the same
    start, each on pairs of its own draw; the iteration's reranker has the mean of their weights (arXiv 2401.12187).
    `ppo.reward` can combine their scores instead.
    """

    pooling: str = "last"
    lm_coef: float = 0.0
    members: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.loss
        for field in dataclasses.fields(ModelSource) if not self.given else ():
            if getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} = {getattr(self, field.name)!r}: without a checkpoint or shape the reranker uses "
                    f"the generator's settings; set generator.{field.name}"
                )

    @property
    def loss(self) -> RerankerConfig:
        return RerankerConfig(self.pooling, self.lm_coef)


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic family: problems per split, solutions in its SFT corpus, and how often those are wrong.

    steps: how many steps a problem has before its final one, each number equally likely: fewer are easier.
    languages: MultiPL-E's short names; the problems cycle through them.
    """

    train: int
    dev: int
    test: int
    corpus: int
    steps: tuple[int, ...] = (2, 3)
    fault_probability: float = 0.6
    slip_probability: float = 0.1
    languages: tuple[str, ...] = ("py",)


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """Where training problems come from.

    train, dev: sources of the two splits. Without sources for dev, `dev_problems` training problems are set aside.
    test_problems: training problems that are set aside for an evaluation set with the source "held_out".
    max_train: at most this many training problems, 0: all. max_test_cases: at most this many per problem, 0: all.
    decontamination_ngram: removes problems that share this many consecutive words with an evaluation problem; 0: none.
    train_on_benchmarks: allows training on evaluation problems, which makes results on these problems invalid.
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
    batch_size: int  # examples, or pairs, per update
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Stage A trains on the synthetic family's corpus and the training problems' own solutions that pass their tests.

    enabled: False uses the checkpoints of the generator, and of a separate reranker, unchanged. evaluate_before: the
    generator's checkpoint is evaluated as well, before SFT.
    """

    enabled: bool = True
    evaluate_before: bool = True


@dataclasses.dataclass(frozen=True)
class CandidatesConfig:
    """Samples per training and dev problem, the prompts in flight on the device, and the samples in flight of each (0:
    all). With fewer samples of more prompts in flight, fewer slots wait for a prompt's last sample; more prompts take
    more memory.

    Only the first `train_problems` training problems are sampled and executed (0: all); SFT and PPO use all of them.
    drawn: JSONL files of samples from another engine (see `candidates.drawn`), which the first iteration takes for the
    SFT model's. A split of which the files have a problem takes all its samples from them.
    """

    train: int
    dev: int
    prompts_in_flight: int
    samples_in_flight: int = 0
    train_problems: int = 0
    drawn: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """The first reranker trains on `pairs`, each later one on `later_pairs`; in `new_fraction` of these the negative is
    one of the policy's failures. "hard" negatives: the `hard_fraction` of failures that the reranker scores highest.

    pairs_together: maximum number of pairs of one prompt that stay in one batch, where the prompt and its completions
        are read once.
    """

    pairs: int
    later_pairs: int
    new_fraction: float
    hard_fraction: float
    pairs_together: int = 1


# Reserved names: of policies, of a stage beside the iterations' rerankers, of files beside evaluation sets' problems.
TAKEN_ITERATIONS = ("base", "sft", "ppo")
TAKEN_SETS = ("train", "dev", "corpus", "removed")
PASS_RATE, RERANKED = "pass_rate", "reranked"  # criteria by which PPO chooses its policy on dev problems
SAMPLED = "sampled"  # pairs of the first iteration: the SFT model's samples and given solutions


@dataclasses.dataclass(frozen=True)
class IterationConfig:
    """One iteration: pairs, a reranker trained on them, and with `ppo` a policy trained from SFT against that reranker.

    pairs: `SAMPLED` for the first iteration, otherwise one of `PAIR_SOURCES`. after: the iteration whose policy's
    samples are mined, with the scores of its reranker; "" for the first. run: False skips the iteration.
    """

    pairs: str
    ppo: bool
    after: str = ""
    run: bool = True


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    """PPO keeps the policy with the best dev `criterion`, measured every `every` iterations on `samples` per problem.

    criterion: `PASS_RATE`, the fraction of samples that pass, or `RERANKED`, the fraction of problems whose best-scored
        sample passes.
    """

    every: int
    samples: int
    criterion: str = PASS_RATE


@dataclasses.dataclass(frozen=True)
class CheckpointsConfig:
    """A checkpoint every `steps` steps or PPO `iterations`; `keep` of them stay. Training resumes from the last."""

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
    """A named set of problems on which the systems are compared, and how the problems are asked and sampled.

    samples: per problem, for the reranker to choose from; a greedy answer is drawn as well. max_problems: 0: all.
    sampling, max_prompt_length, prompts: None or 0: as in training. csharp_lists: C# tests "as-shipped", in which no
    two lists are equal, or "repaired".
    """

    sources: tuple[SourceConfig, ...]
    samples: int
    max_problems: int = 0
    sampling: SamplingConfig | None = None
    max_prompt_length: int = 0
    prompts: PromptConfig | None = None
    csharp_lists: str = "repaired"


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """What selection rules use besides a reranker's scores and the policy's log-probability.

    execute: run the samples on the prompts' inputs (Python only). made_inputs: this many more calls per problem, made
    from the prompt's. sft_log_probs: score the samples under the SFT model, which also estimates a policy's KL.
    ensembles: which of `ENSEMBLES` combine all rerankers of the run, or all their members, on PPO's samples.
    spreads: the values of k in mean - k sd that are tried on the dev split.
    """

    execute: bool = True
    made_inputs: int = 12
    sft_log_probs: bool = True
    ensembles: tuple[str, ...] = tuple(ENSEMBLES)
    spreads: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        if not 0 <= self.made_inputs <= MOST_MADE:
            raise ValueError(f"made_inputs = {self.made_inputs}: use 0 to {MOST_MADE}")
        unknown = [name for name in self.ensembles if name not in ENSEMBLES]
        if unknown:
            raise ValueError(f"ensembles = {self.ensembles}: {unknown[0]!r} is unknown; use {', '.join(ENSEMBLES)}")
        if not self.spreads:
            raise ValueError("spreads = (): give at least one, such as 1.0")


SELECTION = SelectionConfig()


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """A whole run. `evaluation` and `iterations` are keyed by name; lengths are in tokens."""

    seeds: tuple[int, ...]
    generator: ModelSource
    reranker: RerankerSource
    problems: ProblemsConfig
    prompts: PromptConfig
    max_prompt_length: int
    sampling: SamplingConfig  # of the samples for training
    sft: SFTConfig
    candidates: CandidatesConfig
    reranker_training: TrainingConfig
    retraining: TrainingConfig  # of a later iteration's reranker, which starts from the previous one
    ppo: PPOConfig
    early_stopping: EarlyStoppingConfig
    mining: MiningConfig
    iterations: Mapping[str, IterationConfig]
    evaluation: Mapping[str, EvaluationConfig]
    log_prob_weights: tuple[float, ...]  # tried on the dev split for reranker + weight * log-probability
    sandbox: SandboxConfig
    mesh: MeshConfig = ALL_DATA  # of all devices
    checkpoints: CheckpointsConfig = CHECKPOINTS
    selection: SelectionConfig = SELECTION
    lora: LoraConfig = FULL  # rerankers and policies as adapters over the SFT model, or trained whole
    assumptions: tuple[tuple[str, str], ...] = ()  # (field, why it has its value), for the report

    def later_iterations(self) -> list[tuple[str, IterationConfig]]:
        """The iterations after the first that run: each after the one it mines, otherwise in `PAIR_SOURCES`' order."""

        def place(item: tuple[str, IterationConfig]) -> tuple[int, int, str]:
            name, iteration = item
            return self.depth_of(name), PAIR_SOURCES.index(iteration.pairs), name

        return sorted(((n, i) for n, i in self.iterations.items() if i.after and i.run), key=place)

    def depth_of(self, name: str) -> int:
        """1 for the first iteration, 2 for the iterations directly after it, and so on."""
        after = self.iterations[name].after
        return 1 + self.depth_of(after) if after else 1

    @property
    def first_iteration(self) -> str | None:
        """The name of the iteration on the SFT model's samples; None if the run only evaluates."""
        return next((name for name, i in self.iterations.items() if not i.after and i.run), None)

    @property
    def evaluates_checkpoint(self) -> bool:
        """Whether the generator's checkpoint is evaluated alone: before SFT, or as all that the run evaluates."""
        alone = self.sft.evaluate_before if self.sft.enabled else not self.first_iteration
        return bool(self.generator.checkpoint) and alone


def sampling_of(config: ExperimentConfig, name: str) -> tuple[SamplingConfig, int]:
    """How the evaluation set `name` is sampled, and the longest prompt it may have."""
    own = config.evaluation[name]
    return own.sampling or config.sampling, own.max_prompt_length or config.max_prompt_length

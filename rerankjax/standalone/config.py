"""The config of `train-reranker`: base model, data and training, checked before any work."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from rerankjax.loop.checks import require
from rerankjax.loop.config import CHECKPOINTS, KNOWN, CheckpointsConfig, ConfigError
from rerankjax.loop.resolve import build
from rerankjax.model.lora import LoraConfig
from rerankjax.model.sharding import ALL_DATA, MeshConfig
from rerankjax.model.training import OptimizerConfig
from rerankjax.pairs.data import DataSource
from rerankjax.reranker.bradley_terry import RerankerConfig

AUTO, CHAT, TEXT = FORMATS = ("auto", "chat", "text")


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Every `every` steps, training measures the accuracy on pairs of the dev problems and keeps the best parameters.
    It ends after `patience` measurements in a row without improvement (0: never)."""

    every: int = 25
    patience: int = 6


OPTIMIZER = OptimizerConfig(1e-4, steps=300, warmup_steps=10, microbatches=8)
EARLY_STOPPING = EarlyStopping()
LORA = LoraConfig(rank=16, alpha=32.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerTrainingConfig:
    """A reranker from a base model and labelled data.

    base: a Hugging Face folder, a hub id at `revision` ("": the newest), or a .gguf file; a language model, or a
        reranker that is trained further. dtype: of its parameters; compute_dtype, remat, attention, unroll: see
        `loop.config.computed`.
    data: sources of rows (see `pairs.labelled`). dev and test: their own sources; without them, the given fractions of
        the problems of `data`. dev decides when to stop; the reported figures are on test.
    format: "chat" scores conversations by the tokenizer's chat template, "text" the prompt followed by the answer;
        "auto" is "chat" if a row has a conversation.
    max_length: maximum length of prompt and answer together, in tokens; longer pairs are left out.
    pairs_per_problem: maximum number of pairs of executed samples.
    pairs_together: maximum number of pairs of one prompt that stay in one batch, so that the prompt and their answers
        are read once.
    lora: rank 0 trains all parameters.
    """

    base: str
    data: tuple[DataSource, ...]
    dev: tuple[DataSource, ...] = ()
    test: tuple[DataSource, ...] = ()
    dev_fraction: float = 0.1
    test_fraction: float = 0.1
    revision: str = ""
    seed: int = 0
    format: str = AUTO
    max_length: int = 1024
    pairs_per_problem: int = 16
    pairs_together: int = 8
    dtype: str = "float32"
    compute_dtype: str = ""
    remat: str = "none"
    attention: str = "auto"
    unroll: int = 1
    pooling: str = "last"
    lm_coef: float = 0.0
    batch_size: int = 32
    optimizer: OptimizerConfig = OPTIMIZER
    early_stopping: EarlyStopping = EARLY_STOPPING
    lora: LoraConfig = LORA
    mesh: MeshConfig = ALL_DATA
    checkpoints: CheckpointsConfig = CHECKPOINTS

    @property
    def reranker(self) -> RerankerConfig:
        return RerankerConfig(self.pooling, self.lm_coef)


def resolve(config: Mapping[str, Any] | ConfigDict, devices: int) -> RerankerTrainingConfig:
    """The checked config, for a mesh of `devices`.

    Raises:
        ConfigError: a field is missing, unknown, mistyped or impossible; names the field, its value and the remedy.
    """
    built: RerankerTrainingConfig = build(RerankerTrainingConfig, config, "config")
    for name in ("base", "data"):
        require(bool(getattr(built, name)), name, getattr(built, name), f"give it with --config.{name}=...")
    for name, values in {"format": FORMATS, **KNOWN}.items():
        value = getattr(built, name)
        require(value in values, name, repr(value), f"use one of {', '.join(map(repr, values))}")
    try:
        jnp.dtype(built.dtype)
        _ = built.reranker
        shape = built.mesh.shape(devices)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{error}") from error
    for name in ("dev", "test"):
        value = getattr(built, f"{name}_fraction")
        require(0 < value < 0.5, f"{name}_fraction", value, "use more than 0 and less than .5")
    for name in ("max_length", "pairs_per_problem", "pairs_together"):
        require(getattr(built, name) >= 1, name, getattr(built, name), "use 1 or more")
    stopping = built.early_stopping
    require(stopping.every >= 1, "early_stopping.every", stopping.every, "use 1 or more")
    require(stopping.patience >= 0, "early_stopping.patience", stopping.patience, "use 0 or more")
    parts = shape["data"] * shape["fsdp"] * built.optimizer.microbatches
    multiple = built.batch_size > 0 and built.batch_size % parts == 0
    require(
        multiple,
        "batch_size",
        built.batch_size,
        f"not a positive multiple of {parts}, the devices that share a batch times optimizer.microbatches; use "
        f"{max(1, round(built.batch_size / parts)) * parts}",
    )
    return built

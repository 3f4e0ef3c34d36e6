"""The model that a reranker is trained from: its shape, tokenizer and parameters."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.loop.config import ConfigError, computed
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params
from rerankjax.model.lora import init_adapter
from rerankjax.model.pretrained import find_folder
from rerankjax.model.sharding import sharding_of
from rerankjax.prompts.tokenizer import load_tokenizer
from rerankjax.reranker.bradley_terry import init_reranker
from rerankjax.reranker.padding import give_padding
from rerankjax.standalone.config import RerankerTrainingConfig


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """`folder` is the checkpoint's, or a .gguf file. The tokenizer has a padding token, which no text contains and
    whose id may lie beyond the shape's vocabulary."""

    folder: Path
    shape: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    is_reranker: bool


def open_base(config: RerankerTrainingConfig) -> BaseModel:
    """The base model, without its parameters. Raises ConfigError where it cannot be read."""
    try:
        folder = find_folder(config.base, config.revision or None)
        tokenizer = load_tokenizer(folder)
        is_reranker = folder.is_dir() and _is_reranker(folder)
        shape = computed(config, weights.read_shape(folder))
    except (OSError, ValueError) as error:  # the hub client's errors are among these
        raise ConfigError(
            f"config.base = {config.base!r} cannot be loaded: {error}; give a folder with a checkpoint, a .gguf file, "
            "or, if the hub can be reached, a hub id"
        ) from error
    try:
        config.mesh.check_heads(shape.num_key_value_heads)
    except ValueError as error:
        raise ConfigError(f"config.mesh.{error}") from error
    if config.max_length > shape.max_position_embeddings:
        raise ConfigError(
            f"config.max_length = {config.max_length}: the model's context is {shape.max_position_embeddings} tokens; "
            "use at most that"
        )
    if is_reranker and config.lm_coef and not shape.tie_word_embeddings:
        raise ConfigError(f"config.lm_coef = {config.lm_coef}: the reranker has no language-model head; use 0.0")
    give_padding(tokenizer)
    return BaseModel(folder, shape, tokenizer, is_reranker)


def _is_reranker(folder: Path) -> bool:
    architectures = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return str(architectures[0]).endswith("ForSequenceClassification")


def start_reranker(config: RerankerTrainingConfig, model: BaseModel, mesh: Mesh) -> tuple[Params | None, Params]:
    """The frozen base (None if all parameters are trained), and the initial trainable parameters: an adapter or the
    whole model under "decoder", and the head.

    Raises:
        ConfigError: the parameters cannot be read, or the reranker's pooling is not the config's.
    """
    place, dtype = functools.partial(sharding_of, mesh=mesh), jnp.dtype(config.dtype)
    key = jax.random.key(config.seed)
    try:
        if model.is_reranker:
            _, whole, pooling = weights.load_reranker(model.folder, sharding=place, dtype=dtype)
        else:
            decoder = weights.load(model.folder, sharding=place, dtype=dtype)[1]
            whole, pooling = init_reranker(decoder, key), config.pooling
    except ValueError as error:
        raise ConfigError(f"config.base = {config.base!r}: {error}") from error
    if pooling != config.pooling:
        raise ConfigError(
            f"config.pooling = {config.pooling!r}: the reranker in config.base uses {pooling!r}; use the same"
        )
    if not config.lora.rank:
        return None, whole
    adapter = init_adapter(model.shape, config.lora, jax.random.fold_in(key, 1))
    return whole["decoder"], whole | {"decoder": adapter}

"""The models of a seed: their shapes, the sources of their parameters, and their common tokenizer."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from rerankjax.loop.checks import check_shape
from rerankjax.loop.config import ConfigError, ExperimentConfig, ModelSource, computed
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig, RopeScaling
from rerankjax.model.decoder import Params, init_decoder
from rerankjax.model.pretrained import find_folder
from rerankjax.model.sharding import sharding_of
from rerankjax.problems.jsonl import write_text
from rerankjax.prompts.tokenizer import load_tokenizer, train_tokenizer
from rerankjax.run import checkpoint
from rerankjax.run.reads import whole
from rerankjax.run.rundir import write_stage

GENERATOR, RERANKER = "generator", "reranker"
LARGE_FILE_BYTES = 2**20  # of files this large the digest covers only name and size


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as its source gives it. folder: a checkpoint's folder or a GGUF file; None: trained from scratch."""

    name: str  # `GENERATOR`, or `RERANKER` for a separate reranker
    shape: ModelConfig
    folder: Path | None
    dtype: str

    def load(self, mesh: Mesh) -> Params:
        """The checkpoint's parameters on the mesh."""
        assert self.folder is not None
        place = functools.partial(sharding_of, mesh=mesh)
        return weights.load(self.folder, sharding=place, dtype=jnp.dtype(self.dtype))[1]

    def abstract(self, mesh: Mesh) -> Params:
        """The parameters as shapes on the mesh, in float32 if they are trained from scratch."""
        shapes = jax.eval_shape(functools.partial(init_decoder, self.shape), jax.random.key(0))
        if self.folder is not None:
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(self.dtype)), shapes)
        return checkpoint.abstract(shapes, mesh)


def open_model(config: ExperimentConfig, name: str, root: Path, seed: int, texts: Sequence[str]) -> Model:
    """The generator, whose stage also has the tokenizer (see `read_tokenizer`), or a separate reranker.

    texts: training texts for the tokenizer of a generator from scratch.

    Raises:
        ConfigError: the checkpoint cannot be read, or its context is too short.
    """
    source: ModelSource = config.generator if name == GENERATOR else config.reranker
    folder, facts = None, {}
    if source.checkpoint:
        try:
            folder = find_folder(source.checkpoint, source.revision or None)
            facts = {f"{name}.checkpoint": fingerprint(folder)}
            shape = weights.read_shape(folder)
        except (OSError, ValueError) as error:  # the hub client's errors are among these
            raise ConfigError(
                f"config.{name}.checkpoint = {source.checkpoint!r} cannot be loaded: {error}; give a folder with a "
                "checkpoint, or a hub id if the hub can be reached"
            ) from error
        check_shape(config, shape, f"{name}.checkpoint's max_position_embeddings")
    else:
        assert source.shape is not None
        shape = source.shape
    try:
        computed(source, shape)
    except ValueError as error:
        raise ConfigError(f"config.{name}.{error}") from error

    def fill(directory: Path, config: ExperimentConfig) -> None:
        section = whole(config.generator if name == GENERATOR else config.reranker)
        write_text(directory / "model.json", json.dumps(dataclasses.asdict(computed(section, shape)), indent=1) + "\n")
        if name == GENERATOR:
            _write_tokenizer(directory, folder, shape, texts)

    inputs = [] if folder else [f"seed{seed}/problems"]
    path = write_stage(root, f"seed{seed}/models/{name}", config, inputs, fill, facts=facts)
    return Model(name, _read_shape(path), folder, source.dtype)


def _read_shape(path: Path) -> ModelConfig:
    """The shape in a stage that `open_model` wrote."""
    fields = json.loads((path / "model.json").read_text(encoding="utf-8"))
    return ModelConfig(**fields | {"rope_scaling": RopeScaling(**fields["rope_scaling"])})


def read_tokenizer(root: Path, seed: int) -> PreTrainedTokenizerBase:
    """The generator's tokenizer, which the reranker shares: PPO passes the generator's tokens to the reranker."""
    return load_tokenizer(root / f"seed{seed}/models/{GENERATOR}")


def _write_tokenizer(directory: Path, folder: Path | None, shape: ModelConfig, texts: Sequence[str]) -> None:
    if folder is None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, shape.vocab_size)
    else:
        try:
            tokenizer = load_tokenizer(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(f"config.generator.checkpoint = {str(folder)!r}: {error}") from error
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"config.generator.checkpoint = {str(folder)!r}: its tokenizer has no eos_token; set one and save the "
                "tokenizer"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # masks, not tokens, mark the padding
    tokenizer.save_pretrained(directory)


def check_same_tokens(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, reranker: Model) -> None:
    """Raises ConfigError unless a separate reranker can read the generator's tokens."""
    if reranker.folder is None:
        if reranker.shape.vocab_size < len(tokenizer):
            raise ConfigError(
                f"config.reranker.shape.vocab_size = {reranker.shape.vocab_size}: the generator's tokenizer has "
                f"{len(tokenizer)} tokens; use {len(tokenizer)} or more"
            )
        return
    other = load_tokenizer(reranker.folder)
    if tokenizer.get_vocab() != other.get_vocab() or tokenizer.chat_template != other.chat_template:
        raise ConfigError(
            f"config.reranker.checkpoint = {config.reranker.checkpoint!r}: its tokenizer or chat template differs "
            "from the generator's, but the reranker reads the generator's tokens: use checkpoints of one family"
        )


def fingerprint(folder: Path) -> str:
    """A digest of a checkpoint's files: names and sizes, and the contents of the small ones."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            digest.update(path.read_bytes() if size < LARGE_FILE_BYTES else b"")
    return digest.hexdigest()[:16]

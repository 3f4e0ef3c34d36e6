"""A run's models as shapes: read from config.json if there is a checkpoint, and placed on a topology's meshes."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rerankjax.capacity.topology import Topology
from rerankjax.loop import trainers
from rerankjax.loop.checks import check_shape
from rerankjax.loop.config import ConfigError, ExperimentConfig, ModelSource, computed
from rerankjax.loop.models import GENERATOR, RERANKER, Model
from rerankjax.loop.programs import Vocabulary
from rerankjax.model import weights
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, in_compute_dtype
from rerankjax.model.deepseek import DEEPSEEK_CODER
from rerankjax.model.sharding import MeshConfig, make_mesh
from rerankjax.run import checkpoint
from rerankjax.run.hosts import mesh_of_host

DEEPSEEK_IDS = {
    f"deepseek-ai/deepseek-coder-{size.lower()}-{kind}": shape
    for size, shape in DEEPSEEK_CODER.items()
    for kind in ("base", "instruct")
}


def find_shape(config: ExperimentConfig, name: str) -> ModelConfig:
    """The shape of the generator, or of a separate reranker. No weights are read, and none are downloaded.

    A checkpoint's shape is in its folder's config.json or its GGUF file; the shapes of DeepSeek-Coder's hub ids are
    known; other shapes are in the hub's config.json, if the hub can be reached.

    Raises:
        ConfigError: the shape cannot be determined, or its context is too short.
    """
    source: ModelSource = config.generator if name == GENERATOR else config.reranker
    if source.shape is not None:
        return computed(source, source.shape)
    try:
        shape = _checkpoint_shape(source.checkpoint, source.revision or None)
    except (OSError, ValueError) as error:  # the hub client's errors are among these
        raise ConfigError(
            f"config.{name}.checkpoint = {source.checkpoint!r}: its shape cannot be read: {error}; give a folder with "
            "its config.json (the weights are not needed)"
        ) from error
    check_shape(config, shape, f"{name}.checkpoint's max_position_embeddings")
    return computed(source, shape)


@functools.lru_cache(maxsize=16)  # a search asks for the same shapes again and again
def _checkpoint_shape(path_or_id: str, revision: str | None) -> ModelConfig:
    path = Path(path_or_id)
    if not path.exists() and path_or_id in DEEPSEEK_IDS:
        return DEEPSEEK_IDS[path_or_id]
    if not path.exists() and path_or_id.count("/") == 1 and not path_or_id.startswith(("/", ".", "~")):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(path_or_id, "config.json", revision=revision)).parent
    return weights.read_shape(path)


def find_models(config: ExperimentConfig, attention: str, compute_dtype: str) -> tuple[Model, Model]:
    """The generator and the reranker: the same object if they are one model. attention and compute_dtype replace a
    source's "auto".

    Raises:
        ConfigError: as `find_shape`.
    """

    def find(name: str, source: ModelSource) -> Model:
        shape = find_shape(config, name)
        if shape.attention == "auto":
            shape = dataclasses.replace(shape, attention=attention)
        if source.compute_dtype == "auto":
            shape = dataclasses.replace(shape, compute_dtype=compute_dtype)
        return Model(name, shape, Path(source.checkpoint) if source.checkpoint else None, source.dtype)

    generator = find(GENERATOR, config.generator)
    return generator, find(RERANKER, config.reranker) if config.reranker.given else generator


@dataclasses.dataclass(frozen=True)
class RunShapes:
    """What all steps share. `sft` and `trunk` are the generator and the reranker after SFT, one tree if they are one
    model; `host_mesh` is where a host draws and scores its share of the problems."""

    config: ExperimentConfig
    vocabulary: Vocabulary
    generator: Model
    reranker: Model
    mesh: Mesh
    host_mesh: Mesh
    sft: Params
    trunk: Params

    @property
    def own_reranker(self) -> bool:
        return self.reranker is not self.generator

    def base(self, sft: Params) -> Params | None:
        return trainers.lora_base(self.config, sft)

    def with_head(self, model: Model, sft: Params) -> Params:
        """A reranker's parameters, before or after its training."""
        like = jax.eval_shape(lambda p: trainers.start_reranker(self.config, model.shape, p, 0), sft)
        return checkpoint.abstract(like, self.mesh)

    def trained(self, model: Model, sft: Params) -> Params:
        """What training makes of the decoder `sft`: all parameters, or an adapter."""
        return self.with_head(model, sft)["decoder"]

    def attached(self, sft: Params, decoder: Params) -> Params:
        """The same as `lora.attach`, which cannot multiply shapes; the base's leaves stay the same objects."""
        if not self.config.lora.rank:
            return decoder
        layers = {name: module | decoder["layers"].get(name, {}) for name, module in sft["layers"].items()}
        return sft | {"layers": layers}

    def on_host(self, model: Model, decoder: Params) -> Params:
        """The decoder with which a host draws and scores: if there are several hosts, each has a copy."""
        if self.host_mesh is self.mesh:
            return decoder
        light = jax.eval_shape(functools.partial(in_compute_dtype, model.shape), decoder)
        return checkpoint.abstract(light, self.host_mesh)


def open_run(config: ExperimentConfig, topology: Topology, vocabulary: Vocabulary | None = None) -> RunShapes:
    """The run of `config` on a topology. vocabulary: by default one of the generator's size with few stop strings.

    Raises:
        ConfigError: as `find_shape`.
    """
    generator, reranker = find_models(config, topology.attention, topology.compute_dtype)
    mesh, host_mesh = meshes(config.mesh, topology.devices, topology.of_host)
    sft = generator.abstract(mesh)
    trunk = sft if reranker is generator else reranker.abstract(mesh)
    vocabulary = vocabulary or Vocabulary(eos=1, pad=0, tokens=generator.shape.vocab_size, stop_states=8)
    return RunShapes(config, vocabulary, generator, reranker, mesh, host_mesh, sft, trunk)


def meshes(config: MeshConfig, devices: Sequence[Any], of_host: Sequence[Any] | None) -> tuple[Mesh, Mesh]:
    """The run's mesh, and the mesh on which a host draws and scores: the same mesh if there is one host."""
    mesh = make_mesh(config, devices)
    return mesh, mesh_of_host(mesh, of_host) if of_host else mesh


def device_bytes(*trees: Any) -> float:
    """Bytes that trees of shapes take on one device; an array that is in them more than once counts once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(trees)}

    def size(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return float(sum(map(size, leaves.values())))


def dtype_bytes(shape: ModelConfig) -> int:
    """Bytes per value of the type that a model computes in."""
    return jnp.dtype(shape.compute_dtype or "float32").itemsize

"""The arrays of a run as shapes on its mesh: models, training states, batches."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rerankjax.loop.experiment import Experiment
from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, in_compute_dtype, init_decoder
from rerankjax.model.lora import adapter_shapes
from rerankjax.model.sharding import (
    DRAWING,
    MeshConfig,
    by_row,
    make_mesh,
    placed,
    replicated,
    row_shards,
    shardings_of,
)
from rerankjax.model.training import OptimizerConfig, TrainState, init_state, make_optimizer
from rerankjax.run import checkpoint
from rerankjax.run.hosts import mesh_of_host

STATES = 8  # of the stop strings' automaton, a row of the vocabulary's size each: it hardly matters


@dataclasses.dataclass(frozen=True)
class Run:
    """What all steps share. `sft` is the SFT model's parameters, `base` the same where rerankers and policies adapt it;
    `of_host` the mesh on which a host draws and scores its share of the problems."""

    e: Experiment
    mesh: Mesh
    of_host: Mesh
    sft: Params
    base: Params | None

    @property
    def lengths(self) -> tuple[int, int]:
        return self.e.max_prompt_length, self.e.sampling.max_completion_length

    @property
    def dtype_bytes(self) -> int:
        return jnp.dtype(self.e.model.compute_dtype or "float32").itemsize


def start(e: Experiment, devices: Sequence[Any], of_host: Sequence[Any] | None, attention: str) -> Run:
    """The run of `e` on a topology's devices, with its attention kernel where the config says "auto"."""
    if e.model.attention == "auto":
        e = dataclasses.replace(e, model=dataclasses.replace(e.model, attention=attention))
    mesh, own = meshes(e.mesh, devices, of_host)
    sft = decoder(e, mesh)
    return Run(e, mesh, own, sft, sft if e.lora.rank else None)


def meshes(config: MeshConfig, devices: Sequence[Any], of_host: Sequence[Any] | None) -> tuple[Mesh, Mesh]:
    """The run's mesh, and that on which a host draws and scores: the same where there is one host."""
    mesh = make_mesh(config, devices)
    return mesh, mesh_of_host(mesh, of_host) if of_host else mesh


def device_bytes(*trees: Any) -> float:
    """Bytes that trees of shapes take on one device."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(trees)}
    return float(sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves.values()))


def decoder(e: Experiment, mesh: Mesh) -> Params:
    return checkpoint.abstract(_decoder_shapes(e.model), mesh)


@functools.cache
def _decoder_shapes(config: ModelConfig) -> Params:
    return jax.eval_shape(functools.partial(init_decoder, config), jax.random.key(0))


def trained(run: Run) -> Params:
    """A decoder of its own that training makes of the SFT model, or its adapter."""
    if run.base is None:
        return decoder(run.e, run.mesh)
    return checkpoint.abstract(adapter_shapes(run.e.model, run.e.lora), run.mesh)


def head(run: Run, mesh: Mesh) -> Any:
    """A reranker's or a value function's."""
    return jax.ShapeDtypeStruct((run.e.model.hidden_size,), jnp.float32, sharding=replicated(mesh))


def with_head(run: Run, name: str) -> Params:
    return {"decoder": trained(run), name: head(run, run.mesh)}


def attached(run: Run, decoder: Params) -> Params:
    """As `lora.attach`, which cannot multiply shapes."""
    if run.base is None:
        return decoder
    layers = {name: module | decoder["layers"].get(name, {}) for name, module in run.base["layers"].items()}
    return run.base | {"layers": layers}


def training_state(params: Params, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    shapes = jax.eval_shape(lambda p: init_state(p, make_optimizer(optimizer)), params)
    return TrainState(params, *checkpoint.abstract(shapes, mesh)[1:])


def rows_of(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    sharding = by_row(mesh) if shape[0] % row_shards(mesh) == 0 else replicated(mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def masked(mesh: Mesh, rows: int, length: int) -> tuple[Any, Any]:
    """Tokens and their mask."""
    return rows_of(mesh, (rows, length), jnp.int32), rows_of(mesh, (rows, length), jnp.bool_)


def stop_table(run: Run, mesh: Mesh) -> Any:
    return jax.ShapeDtypeStruct((STATES, run.e.model.vocab_size), jnp.int32, sharding=replicated(mesh))


def keys_of(rows: int) -> Any:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))


def head_shards(run: Run, mesh: Mesh) -> int:
    tensor = mesh.shape["tensor"]
    return tensor if run.e.model.num_key_value_heads % tensor == 0 else 1


def as_on_host(run: Run, model: Params) -> Params:
    """A decoder as a host draws and scores with it: where there are several, all of it once more."""
    if run.of_host is run.mesh:
        return model
    light = jax.eval_shape(functools.partial(in_compute_dtype, run.e.model), model)
    return checkpoint.abstract(light, run.of_host)


def as_drawn(run: Run) -> Params:
    """The copy of a policy that PPO draws with."""
    shapes = jax.eval_shape(functools.partial(in_compute_dtype, run.e.model), attached(run, trained(run)))
    return placed(shapes, shardings_of(shapes, run.mesh, DRAWING))

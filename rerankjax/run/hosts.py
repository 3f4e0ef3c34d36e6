"""Several hosts, one run: every process runs the same program, and these functions keep the processes in step.

Device code runs on the whole mesh. Host work is divided: each process samples, executes and scores its own share of
the problems on its own devices, and the results are gathered on all. Only process 0 writes files, except checkpoints:
each process writes its part of those. With one process, these functions communicate nothing.
"""

import contextlib
import io
import json
import operator
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rerankjax.model.config import ModelConfig
from rerankjax.model.decoder import Params, in_compute_dtype
from rerankjax.model.sharding import AXES, MeshConfig, make_mesh, shardings_of

HEARTBEAT_SECONDS = 30  # without a heartbeat from one process, until all end

T = TypeVar("T")


def make_cpu_devices(count: int) -> None:
    """Makes `count` devices of this host's cores, for a host without accelerators. Call it before JAX is used."""
    # Threads of XLA's pool: more than devices, otherwise the collectives of two programs may wait for each other.
    os.environ.setdefault("NPROC", str(max(16, 2 * count)))
    jax.config.update("jax_num_cpu_devices", count)


def connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process with the others. Without arguments JAX asks its cluster: Cloud TPU, Slurm, ...

    If one process ends or its heartbeat stops, all end: start them again, and the run resumes.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":  # only gloo reduces between CPUs of several processes
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def is_first() -> bool:
    """Whether this is process 0, which writes the files that are written once."""
    return jax.process_index() == 0


def first_prints() -> contextlib.AbstractContextManager[object]:
    """A context in which what processes other than process 0 print is dropped."""
    return contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO())


def host_share(items: Sequence[T]) -> Sequence[T]:
    """The items that this process works on, of a list that every process has."""
    return items[jax.process_index() :: jax.process_count()]


def wait_for_all(what: str) -> None:
    """Returns when every process has called it with the same `what`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def broadcast_from_first(value: bool) -> bool:
    """Process 0's value, so that all processes take the same branch: a host may not yet see another host's file."""
    return bool(multihost_utils.broadcast_one_to_all(value)) if jax.process_count() > 1 else value


def allgather_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all processes, process 0's first. Values are of JSON's types."""
    if jax.process_count() == 1:
        return rows
    payload = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int64(payload.size)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: payload.size] = payload
    everyone = multihost_utils.process_allgather(padded)
    return [row for one, size in zip(everyone, sizes, strict=True) for row in json.loads(bytes(one[:size]))]


def host_mesh_of(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices: the whole mesh if there is one process."""
    return mesh if jax.process_count() == 1 else mesh_of_host(mesh, jax.local_devices())


def mesh_of_host(mesh: Mesh, devices: Sequence[Any]) -> Mesh:
    """A mesh of one host's devices, with the `tensor` size of the whole mesh if it divides their number."""
    tensor = mesh.shape["tensor"] if len(devices) % mesh.shape["tensor"] == 0 else 1
    return make_mesh(MeshConfig(tensor=tensor), devices)


def copy_decoder_to_host(shape: ModelConfig, decoder: Params, mesh: Mesh) -> Params:
    """`copy_to_host` of a decoder; with several processes cast to `compute_dtype`, which halves a float32 copy."""
    return copy_to_host(decoder if jax.process_count() == 1 else in_compute_dtype(shape, decoder), mesh)


def copy_to_host(params: Any, mesh: Mesh) -> Any:
    """Parameters on `host_mesh_of(mesh)`: every process gets all of them, split over its own devices."""
    if jax.process_count() == 1:
        return params
    own = host_mesh_of(mesh)
    by_process = sorted(jax.devices(), key=operator.attrgetter("process_index", "id"))
    devices = np.array(by_process).reshape(jax.process_count(), *own.devices.shape)
    devices[jax.process_index()] = own.devices
    everywhere = Mesh(devices, ("process", *AXES), axis_types=(AxisType.Auto,) * (1 + len(AXES)))

    placed = shardings_of(params, own)
    target = jax.tree.map(lambda s: NamedSharding(everywhere, PartitionSpec(*s.spec)), placed)
    copies = jax.device_put(params, target)

    def own_part(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        parts = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)

    return jax.tree.map(own_part, copies, placed)

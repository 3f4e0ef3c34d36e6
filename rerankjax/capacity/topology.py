"""Devices to compile for that need not be present: TPU slices, NVIDIA GPUs, and simulated CPU devices.

A topology is a chip and a count: a TPU's shape in chips, as `tpu/` takes it (v5e:4x4), or a number (h100:8, cpu:8).
TPU programs are compiled by libtpu, GPU programs by JAX's CUDA plugin; neither needs the hardware.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
from jax.experimental.topologies import get_topology_desc

from rerankjax.capacity.roofline import CHIPS, Chip
from rerankjax.model.products import fastest_dtype

TPUS, GPUS = ("v5e", "v5p", "v6e"), ("h100", "h200")
GPUS_OF_HOST = 8
# The fraction of a GPU's memory that JAX takes, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
FRACTION = 0.75
# Round numbers, so that a roofline can order steps: simulated devices have no speed.
CPU = Chip("simulated CPU device", 1e11, 1e10, 4e9, "none")

# CUDA's properties of the GPU, by which XLA chooses among kernels (compute capability 9.0: CUDA C++ Programming Guide,
# "Technical Specifications per Compute Capability"; the rest from the H100's and H200's data sheets).
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


class TopologyError(ValueError):
    """A topology that cannot be compiled for."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """What to compile for. of_host: the devices of one host if there are several hosts, otherwise None."""

    name: str
    devices: tuple[Any, ...]
    of_host: tuple[Any, ...] | None
    chip: Chip
    memory_bytes: float  # per device, for arrays and programs
    attention: str  # replaces a config's "auto", which would follow this machine's backend
    compute_dtype: str  # likewise
    quick: Mapping[str, Any]  # compiler options for a compilation that only measures memory
    uncertain: float = 0.0  # the fraction by which `quick` may underestimate temporaries


def prepare(name: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what JAX and its compilers read when they start. Call it before the first use of a device.

    Raises:
        TopologyError: no such topology.
    """
    chip, shape = _parse(name)
    environment["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if chip == "cpu":
        jax.config.update("jax_num_cpu_devices", math.prod(shape))
    elif chip in TPUS:
        # Do not ask a metadata server which machine this is, and let other processes use libtpu too.
        environment.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    else:
        # XLA would choose kernels by timing them, for which there is no device.
        flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()


def find(name: str, memory_gb: float | None = None) -> Topology:
    """The topology `name`; `memory_gb` (1e9 bytes per device) replaces the chip's memory.

    Raises:
        TopologyError: no such topology, or its compiler is not installed.
    """
    kind, shape = _parse(name)
    chip, count = CHIPS.get(kind, CPU), math.prod(shape)
    memory = chip.memory_bytes * (FRACTION if kind in GPUS else 1) if memory_gb is None else memory_gb * 1e9
    if kind == "cpu":
        devices = jax.devices("cpu")[:count]
        if len(devices) < count:
            raise TopologyError(
                f"--topology={name}: JAX has only {len(devices)} CPU devices; set jax_num_cpu_devices = {count}"
            )
        # The older emitters compile in half the time; jaxlib 0.12 and later have none.
        older = {"xla_cpu_use_fusion_emitters": False}
        quick = {"xla_backend_optimization_level": 0, **(older if _compiler_knows(older) else {})}
        return Topology(name, tuple(devices), None, chip, memory, "skip", fastest_dtype(), quick, 0.05)
    if kind in TPUS:
        _need("libtpu", name, "tpu")
        # Cloud TPU puts 8 chips of v5e or v6e into one machine, and 4 into each of several.
        alone = shape if kind != "v5p" and count <= 8 else (2, 2, 1)[: len(shape)]

        def describe(shape: tuple[int, ...]) -> tuple[Any, ...]:
            grid = f"{kind}:{'x'.join(map(str, shape))}"
            bounds = (*alone, 1)[:3]
            return _describe(name, platform="tpu", topology_name=grid, chips_per_host_bounds=bounds)
    else:
        _need("jax_cuda13_plugin", name, "cuda")
        alone = (min(count, GPUS_OF_HOST),)
        target = _HOPPER.format(bandwidth=chip.bytes_per_second, memory=chip.memory_bytes, name=f"NVIDIA {chip.name}")

        def describe(shape: tuple[int, ...]) -> tuple[Any, ...]:
            grid = f"1x{-(-shape[0] // GPUS_OF_HOST)}x{alone[0]}"
            return _describe(name, platform="cuda", topology_name=kind, target_config=target, topology=grid)

    # XLA cannot compile for a part of a topology's devices: a host gets its own topology.
    of_host = describe(alone) if math.prod(alone) < count else None
    if kind in GPUS:  # cuDNN's kernel cannot be built without a GPU
        return Topology(name, describe(shape), of_host, chip, memory, "xla", "bfloat16", {})
    # A third of the compile time. For 6.7B's steps, the default effort's temporaries were .93 to 1.35 times these.
    least_effort = {"exec_time_optimization_effort": -1.0}
    return Topology(name, describe(shape), of_host, chip, memory, "splash", "bfloat16", least_effort, 0.4)


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
    kind, _, shape = name.partition(":")
    known = f"a chip ({', '.join((*TPUS, *GPUS, 'cpu'))}) and its shape, as in v5e:4x4, v5p:2x2x1, h100:8 or cpu:8"
    if kind not in (*TPUS, *GPUS, "cpu"):
        raise TopologyError(f"--topology={name}: {kind!r} is unknown; give {known}")
    dimensions = {"v5p": 3}.get(kind, 2) if kind in TPUS else 1
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{dimensions - 1}}}", shape):
        raise TopologyError(f"--topology={name}: {shape!r} is not a shape of {dimensions} numbers; give {known}")
    sizes = tuple(map(int, shape.split("x")))
    if kind in GPUS and sizes[0] > GPUS_OF_HOST and sizes[0] % GPUS_OF_HOST:
        raise TopologyError(f"--topology={name}: a host has {GPUS_OF_HOST} GPUs; give a multiple of {GPUS_OF_HOST}")
    return kind, sizes


def _need(module: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise TopologyError(
            f"--topology={name}: its compiler, {module}, is not installed; "
            f"pip install -c constraints.txt -e '.[{extra}]' (the device is not needed)"
        )


def _compiler_knows(options: dict[str, Any]) -> bool:
    """Whether XLA, which refuses unknown options, accepts these for a program of this process's devices."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def _describe(name: str, **arguments: Any) -> tuple[Any, ...]:
    try:
        return tuple(get_topology_desc(**arguments).devices)
    except (RuntimeError, NotImplementedError) as error:
        raise TopologyError(f"--topology={name}: its compiler rejects it: {error}") from error

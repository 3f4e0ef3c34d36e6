"""Searches for the mesh, remat, microbatches and prompts in flight with which a run fits at the least time."""

import bisect
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from rerankjax.capacity.device_steps import Step, device_steps
from rerankjax.capacity.preflight import Compiler, MemoryUse, memory_use
from rerankjax.capacity.roofline import seconds
from rerankjax.capacity.run_shapes import find_models, meshes
from rerankjax.capacity.topology import Topology
from rerankjax.loop.checks import check
from rerankjax.loop.config import ConfigError, ExperimentConfig
from rerankjax.model.config import REMATS
from rerankjax.model.sharding import MeshConfig, make_mesh, row_shards
from rerankjax.policy.ppo import PPOConfig

# The kinds of steps that microbatches change, with the config's sections that set the microbatches.
MICROBATCHES = {
    ("SFT",): ("sft.optimizer",),
    ("reranker",): ("reranker_training.optimizer", "retraining.optimizer"),
    ("PPO reference", "PPO scores", "PPO outputs", "PPO update"): ("ppo",),
}
# The kinds that only the mesh changes, and the kinds that the prompts in flight change.
WHOLE = "SFT, Adam", "reranker, Adam", "PPO update, Adam", "scoring", "log-probabilities"
SAMPLING = "read prompts", "draw"


def training_seconds(config: ExperimentConfig, topology: Topology) -> float:
    """The roofline time of all updates of the run, which remat and microbatches change."""
    return sum(s.calls * seconds(s.cost, topology.chip, s.mesh.size) for s in device_steps(config, topology))


def suggest(config: ExperimentConfig, compiler: Compiler, most: int) -> ExperimentConfig | None:
    """`config` with the mesh, remat and microbatches that fit at the least roofline time of training; None if none do.

    Pairs of mesh and remat are tried in the order of their times without microbatches; of equals the present mesh comes
    first, then those that split less over `tensor`, then over `fsdp`. The search ends when no other pair can be 1%
    faster, or after `most` compilations. For each pair, bisection finds the fewest microbatches of each training step.
    If samples do not fit, fewer prompts are in flight: a sample does not depend on the others in flight. A step that is
    close to the limit does not count as fitting.
    """
    topology = compiler.topology
    best, least = None, math.inf
    for bound, variant in _variants(config, topology):
        if bound > 0.99 * least or compiler.count >= most:
            break
        fitted = _fitting(variant, compiler, most)
        if fitted is not None:
            time = training_seconds(fitted, topology)
            best, least = (fitted, time) if best is None or time < least else (best, least)
    return best


def _variants(config: ExperimentConfig, topology: Topology) -> list[tuple[float, ExperimentConfig]]:
    """Each mesh and remat that may fit, with the least time that it takes; in order of trial."""
    variants = []
    for on_mesh in _on_meshes(config, topology):
        least = _with_prompts(on_mesh, _prompts(on_mesh, topology)[-1])
        # The arrays that exist before any program runs rule out most meshes.
        if _certainly(least, topology)[0].total > topology.memory_bytes:
            continue
        for remat in REMATS:
            variant = on_mesh
            for path in _remat_paths(config):
                variant = _replaced(variant, path, remat)
            for paths in MICROBATCHES.values():
                variant = _with_microbatches(variant, paths, 1)
            variants.append((training_seconds(variant, topology), variant))
    return sorted(variants, key=lambda pair: pair[0])  # stable: equal times keep the order of meshes


def _certainly(config: ExperimentConfig, topology: Topology) -> tuple[MemoryUse, Step]:
    """The step that takes the most memory, not counting what only compilation can measure."""
    steps = device_steps(config, topology)
    return max(((memory_use(step, None), step) for step in steps), key=lambda pair: pair[0].total)


def _on_meshes(config: ExperimentConfig, topology: Topology) -> Iterator[ExperimentConfig]:
    """`config` on each mesh on which it can run."""
    models = find_models(config, topology.attention, topology.compute_dtype)
    heads = math.gcd(*(model.shape.num_key_value_heads for model in models))
    for mesh in _meshes(config.mesh, len(topology.devices), heads):
        on_mesh = dataclasses.replace(config, mesh=mesh)
        with contextlib.suppress(ConfigError):
            check(on_mesh, len(topology.devices))
            if config.candidates.prompts_in_flight % _sharing(on_mesh, topology) == 0:
                yield on_mesh


def _meshes(mesh: MeshConfig, devices: int, heads: int) -> Iterator[MeshConfig]:
    yield mesh
    shape = mesh.shape(devices)
    left = devices // mesh.sequence
    divisors = [n for n in range(1, left + 1) if left % n == 0]
    for tensor in divisors:
        for fsdp in divisors:
            split = left % (tensor * fsdp) == 0 and heads % tensor == 0
            if split and (tensor, fsdp) != (shape["tensor"], shape["fsdp"]):
                data = left // (tensor * fsdp) if mesh.data else 0
                yield MeshConfig(data, fsdp, mesh.sequence, tensor)


def _fitting(config: ExperimentConfig, compiler: Compiler, most: int) -> ExperimentConfig | None:
    """`config` with the most prompts in flight and the fewest microbatches that fit; None if none fit."""
    topology = compiler.topology

    def fit(config: ExperimentConfig, kinds: tuple[str, ...]) -> bool:
        steps = [step for step in device_steps(config, topology) if step.kind in kinds]
        # First by the memory that is certain: that needs no compilation.
        small = all(memory_use(step, None).total <= topology.memory_bytes for step in steps)
        return small and all(compiler.count < most and compiler.estimate(step).fits for step in steps)

    if not fit(config, WHOLE):
        return None
    sizes = (_with_prompts(config, size) for size in _prompts(config, topology))
    fitted = next((variant for variant in sizes if fit(variant, SAMPLING)), None)
    if fitted is None:
        return None
    for kinds, paths in MICROBATCHES.items():
        options = [_with_microbatches(fitted, paths, parts) for parts in _parts(fitted, paths, topology)]
        least = bisect.bisect_left(options, True, key=lambda variant: fit(variant, kinds))
        if least == len(options):
            return None
        fitted = options[least]
    return fitted


def _prompts(config: ExperimentConfig, topology: Topology) -> list[int]:
    """`candidates.prompts_in_flight`, halved for as long as devices can share the prompts; the largest first."""
    sizes = [config.candidates.prompts_in_flight]
    while sizes[-1] % (2 * _sharing(config, topology)) == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def _sharing(config: ExperimentConfig, topology: Topology) -> int:
    """The number that must divide the prompts in flight: all devices share a batch, a host's devices its samples."""
    return math.lcm(*map(row_shards, meshes(config.mesh, topology.devices, topology.of_host)))


def _with_prompts(config: ExperimentConfig, size: int) -> ExperimentConfig:
    return _replaced(config, "candidates.prompts_in_flight", size)


def _parts(config: ExperimentConfig, paths: tuple[str, ...], topology: Topology) -> Iterator[int]:
    """Powers of two that divide a step's batches into parts, each of which divides by the devices that share it."""
    shards = row_shards(make_mesh(config.mesh, topology.devices))
    sections = [_field(config, path.removesuffix(".optimizer")) for path in paths]
    sizes = [s.batch_size // (s.minibatches if isinstance(s, PPOConfig) else 1) for s in sections]
    parts = 1
    while all(size % (parts * shards) == 0 for size in sizes):
        yield parts
        parts *= 2


def _with_microbatches(config: ExperimentConfig, paths: tuple[str, ...], parts: int) -> ExperimentConfig:
    for path in paths:
        config = _replaced(config, f"{path}.microbatches", parts)
    return config


def _remat_paths(config: ExperimentConfig) -> list[str]:
    """The fields that set remat: a reranker that starts from the generator uses the generator's."""
    return ["generator.remat", *(["reranker.remat"] if config.reranker.given else [])]


def _field(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name)
    return section


def _replaced(section: Any, path: str, value: Any) -> Any:
    """A config, or a section of it, with `value` in the field at `path`."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(section, **{name: _replaced(getattr(section, name), rest, value) if rest else value})


def flags(before: ExperimentConfig, after: ExperimentConfig) -> list[str]:
    """The `--config` flags that turn `before` into `after`."""
    paths = ["mesh.data", "mesh.fsdp", "mesh.tensor", "candidates.prompts_in_flight", *_remat_paths(before)]
    paths += [f"{path}.microbatches" for of_kinds in MICROBATCHES.values() for path in of_kinds]
    return [f"--config.{p}={_field(after, p)}" for p in paths if _field(after, p) != _field(before, p)]


def described(config: ExperimentConfig, topology: Topology) -> str:
    """The settings that the search varies, in one line."""
    shape = config.mesh.shape(len(topology.devices))
    mesh = ", ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1) or "one chip"
    remat = ", ".join(_field(config, path) for path in _remat_paths(config))
    parts = ", ".join(f"{kinds[-1]} {_field(config, paths[0]).microbatches}" for kinds, paths in MICROBATCHES.items())
    prompts = config.candidates.prompts_in_flight
    return f"Mesh: {mesh}. Remat: {remat}. Microbatches: {parts}. Prompts in flight: {prompts}."


def closest(config: ExperimentConfig, topology: Topology) -> str:
    """A message for the case that nothing fits: the largest step, on the mesh where it takes the least memory."""
    least = (_with_prompts(on, _prompts(on, topology)[-1]) for on in _on_meshes(config, topology))
    tried = [(*_certainly(variant, topology), variant) for variant in least]
    if not tried:
        return (
            f"No mesh of {len(topology.devices)} chips can split the run's batches; change "
            "config.candidates.prompts_in_flight."
        )
    use, step, variant = min(tried, key=lambda trial: trial[0].total)
    return (
        f"In the best case, {step.name} takes {use.total / 1e9:.3g} GB of {topology.memory_bytes / 1e9:.3g} without "
        f"its activations (other models take {use.resident / 1e9:.3g} GB of that), with "
        f"{' '.join(flags(config, variant)) or 'this config'}: "
        "use more chips, adapters (--config.lora.rank=16) or fewer samples (--config.candidates)."
    )

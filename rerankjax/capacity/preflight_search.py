"""The mesh, remat and microbatches by which a run that does not fit would, at the least time."""

import bisect
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from rerankjax.capacity.device_steps import Step, device_steps
from rerankjax.capacity.preflight import Compiler, Need, need_of
from rerankjax.capacity.roofline import seconds
from rerankjax.capacity.run_shapes import meshes
from rerankjax.capacity.topology import Topology
from rerankjax.loop.experiment import ConfigError, Experiment, check
from rerankjax.model.config import REMATS
from rerankjax.model.sharding import MeshConfig, make_mesh, row_shards

# Which fields hold the microbatches of each training step.
MICROBATCHES = {
    "SFT": ("sft.optimizer",),
    "reranker": ("reranker_training.optimizer", "retraining.optimizer"),
    "PPO update": ("ppo",),
}
SAMPLING = "read prompts", "draw", "draw, in PPO"


def training_seconds(e: Experiment, topology: Topology) -> float:
    """The roofline time of all updates of the run: what remat and microbatches change."""
    return sum(s.calls * seconds(s.cost, topology.chip, s.mesh.size) for s in device_steps(e, topology))


def suggest(e: Experiment, compiler: Compiler, most: int) -> Experiment | None:
    """`e` on the mesh, and with the remat and microbatches, that fit at the least roofline time of training; None if
    none of them does.

    Pairs of mesh and remat are tried by the time that they would take without microbatches, of equals the present mesh
    first, then those that split less over `tensor`, then over `fsdp`: until no other can be 1% faster, or `most`
    compilations are reached. Of each, the least microbatches of each training step are found by bisection. Where
    samples do not fit, fewer problems are under way at a time: a sample is the same in whatever company it is drawn.
    What is close does not count as fitting.
    """
    topology = compiler.topology
    best, least = None, math.inf
    for bound, variant in _variants(e, topology):
        if bound > 0.99 * least or compiler.count >= most:
            break
        found = _fitting(variant, compiler, most)
        if found is not None:
            time = training_seconds(found, topology)
            best, least = (found, time) if time < least else (best, least)
    return best


def _variants(e: Experiment, topology: Topology) -> list[tuple[float, Experiment]]:
    """Each mesh and remat that may fit, with the time that it takes at least; in order of trial."""
    found = []
    for on_mesh in _on_meshes(e, topology):
        least = _with_problems(on_mesh, _problems(on_mesh, topology)[-1])
        # What is there before any program runs rules most out.
        if _certainly(least, topology)[0].total > topology.memory_bytes:
            continue
        for remat in REMATS:
            variant = dataclasses.replace(on_mesh, model=dataclasses.replace(e.model, remat=remat))
            for name in MICROBATCHES:
                variant = _with_microbatches(variant, name, 1)
            found.append((training_seconds(variant, topology), variant))
    return sorted(found, key=lambda pair: pair[0])  # stable: meshes in their order


def _certainly(e: Experiment, topology: Topology) -> tuple[Need, Step]:
    """The step that takes most, as far as is known before it is compiled."""
    return max(((need_of(step, None), step) for step in device_steps(e, topology)), key=lambda one: one[0].total)


def _on_meshes(e: Experiment, topology: Topology) -> Iterator[Experiment]:
    """`e` on each mesh on which the config can run."""
    for mesh in _meshes(e, len(topology.devices)):
        on_mesh = dataclasses.replace(e, mesh=mesh)
        with contextlib.suppress(ConfigError):
            check(on_mesh, len(topology.devices))
            if e.candidates.batch_size % _sharing(on_mesh, topology) == 0:
                yield on_mesh


def _meshes(e: Experiment, devices: int) -> Iterator[MeshConfig]:
    yield e.mesh
    shape = e.mesh.shape(devices)
    left = devices // e.mesh.sequence
    divisors = [n for n in range(1, left + 1) if left % n == 0]
    for tensor in divisors:
        for fsdp in divisors:
            split = left % (tensor * fsdp) == 0 and e.model.num_key_value_heads % tensor == 0
            if split and (tensor, fsdp) != (shape["tensor"], shape["fsdp"]):
                data = left // (tensor * fsdp) if e.mesh.data else 0
                yield MeshConfig(data, fsdp, e.mesh.sequence, tensor)


def _fitting(e: Experiment, compiler: Compiler, most: int) -> Experiment | None:
    """`e` with the most problems under way and the least microbatches that fit."""
    topology = compiler.topology

    def fit(e: Experiment, *names: str) -> bool:
        steps = [step for step in device_steps(e, topology) if step.name in names]
        # By what is known for certain first: that costs nothing.
        small = all(need_of(step, None).total <= topology.memory_bytes for step in steps)
        return small and all(compiler.count < most and compiler.line(step).fits for step in steps)

    if not fit(e, "PPO rollout", "scoring"):
        return None
    sizes = (_with_problems(e, size) for size in _problems(e, topology))
    drawn = next((variant for variant in sizes if fit(variant, *SAMPLING)), None)
    if drawn is None:
        return None
    for name in MICROBATCHES:
        options = [_with_microbatches(drawn, name, parts) for parts in _parts(drawn, name, topology)]
        least = bisect.bisect_left(options, True, key=lambda variant: fit(variant, name))
        if least == len(options):
            return None
        drawn = options[least]
    return drawn


def _problems(e: Experiment, topology: Topology) -> list[int]:
    """`candidates.batch_size` and its halves, as far as devices can share them; the largest first."""
    sizes = [e.candidates.batch_size]
    while sizes[-1] % (2 * _sharing(e, topology)) == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def _sharing(e: Experiment, topology: Topology) -> int:
    """What the number of problems under way divides by: all devices share a batch, those of a host its samples."""
    return math.lcm(*map(row_shards, meshes(e.mesh, topology.devices, topology.of_host)))


def _with_problems(e: Experiment, size: int) -> Experiment:
    return dataclasses.replace(e, candidates=dataclasses.replace(e.candidates, batch_size=size))


def _parts(e: Experiment, name: str, topology: Topology) -> Iterator[int]:
    """Powers of two into which a step's batches divide, each part among all devices that share a batch."""
    shards = row_shards(make_mesh(e.mesh, topology.devices))
    sizes = {
        "SFT": (e.sft.batch_size,),
        "reranker": (e.reranker_training.batch_size, e.retraining.batch_size),
        "PPO update": (e.ppo.batch_size // e.ppo.minibatches,),
    }[name]
    parts = 1
    while all(size % (parts * shards) == 0 for size in sizes):
        yield parts
        parts *= 2


def _field(e: Experiment, path: str) -> Any:
    section: Any = e
    for name in path.split("."):
        section = getattr(section, name)
    return section


def _with_microbatches(e: Experiment, name: str, parts: int) -> Experiment:
    for path in MICROBATCHES[name]:
        outer, *inner = path.split(".")
        section = getattr(e, outer)
        if inner:
            section = dataclasses.replace(section, optimizer=dataclasses.replace(section.optimizer, microbatches=parts))
        else:
            section = dataclasses.replace(section, microbatches=parts)
        e = dataclasses.replace(e, **{outer: section})
    return e


def flags(before: Experiment, after: Experiment) -> list[str]:
    """What `--config` flags make `after` of `before`."""
    paths = ["mesh.data", "mesh.fsdp", "mesh.tensor", "candidates.batch_size", "model.remat"]
    paths += [f"{path}.microbatches" for of_step in MICROBATCHES.values() for path in of_step]
    return [f"--config.{p}={_field(after, p)}" for p in paths if _field(after, p) != _field(before, p)]


def described(e: Experiment, topology: Topology) -> str:
    """What preflight varies, in a line."""
    shape = e.mesh.shape(len(topology.devices))
    mesh = ", ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1) or "one chip"
    parts = ", ".join(f"{name} {_field(e, paths[0]).microbatches}" for name, paths in MICROBATCHES.items())
    problems = e.candidates.batch_size
    return f"Mesh: {mesh}. Remat: {e.model.remat}. Microbatches: {parts}. Problems under way: {problems}."


def closest(e: Experiment, topology: Topology) -> str:
    """What binds where nothing fits: the step that has least room, on the mesh that leaves it most."""
    least = (_with_problems(on, _problems(on, topology)[-1]) for on in _on_meshes(e, topology))
    tried = [(*_certainly(one, topology), one) for one in least]
    need, step, one = min(tried, key=lambda found: found[0].total)
    return (
        f"At best, {step.name} takes {need.total / 1e9:.3g} GB of {topology.memory_bytes / 1e9:.3g} before its "
        f"activations ({need.held / 1e9:.3g} of it are other models), with {' '.join(flags(e, one)) or 'this config'}: "
        "use more chips, adapters (--config.lora.rank=16) or fewer samples (--config.candidates)."
    )

"""Whether a run fits the memory of devices that need not be present.

Every device step is compiled ahead of time; the compiler reports the memory that the step takes besides its arguments.
For TPUs it compiles with the least effort, and again as in a run only if that decides whether the whole run fits.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from rerankjax.capacity.device_steps import Step, device_steps
from rerankjax.capacity.roofline import seconds
from rerankjax.capacity.run_shapes import device_bytes
from rerankjax.capacity.topology import Topology
from rerankjax.loop.config import ExperimentConfig
from rerankjax.results.render import pipes


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Bytes of one device's memory during a step: its arguments, what it makes, and what is resident besides.

    activations: also gradients and all else that a program makes and drops, and the program's code. If the step was not
    `compiled`, because the rest does not fit already, only the part that is certain.
    """

    weights: float
    optimiser: float
    cache: float
    activations: float
    resident: float
    compiled: bool

    @property
    def total(self) -> float:
        return self.weights + self.optimiser + self.cache + self.activations + self.resident


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Preflight's estimate of a step."""

    step: Step
    memory: MemoryUse
    fits: bool | None  # None: close to the limit, and not compiled as in a run
    seconds: float  # the roofline's


class Compiler:
    """Compiles steps for a topology, identical programs once. count: the number of compilations so far."""

    def __init__(self, topology: Topology, say: Callable[[str], object] = lambda text: None) -> None:
        self.topology, self.count, self._say = topology, 0, say
        self._temporaries: dict[tuple[Any, ...], float] = {}

    def estimate(self, step: Step, confirm: bool = False) -> Estimate:
        """What the step needs, and whether it fits. confirm: compile a step close to the limit as in a run."""
        available, use = self.topology.memory_bytes, memory_use(step, None)
        fits: bool | None = use.total <= available
        if fits:
            temporaries = self._compiled(step, self.topology.quick)
            use = memory_use(step, temporaries)
            fits = use.total <= available
            if fits and use.total + self.topology.uncertain * temporaries > available:
                use = memory_use(step, self._compiled(step, {})) if confirm else use
                fits = use.total <= available if confirm else None
        return Estimate(step, use, fits, seconds(step.cost, self.topology.chip, step.mesh.size))

    def _compiled(self, step: Step, options: Mapping[str, Any]) -> float:
        shapes = (leaf.shape for leaf in jax.tree.leaves(step.program.arguments))
        key = step.program.function, *options, *shapes
        if key not in self._temporaries:
            self.count += 1
            self._say(f"compiling {step.name}{'' if options else ', as in a run'} ...")
            self._temporaries[key] = _temporaries(step, options)
        return self._temporaries[key]


def estimates_of(config: ExperimentConfig, compiler: Compiler) -> list[Estimate]:
    """Every step of a run, compiled; unless one does not fit, those close to the limit are compiled as in a run."""
    steps = device_steps(config, compiler.topology)
    estimates = [compiler.estimate(step) for step in steps]
    decided = any(estimate.fits is False for estimate in estimates)
    return estimates if decided else [compiler.estimate(step, confirm=True) for step in steps]


def memory_use(step: Step, temporaries: float | None) -> MemoryUse:
    """The memory of a step whose program makes and drops `temporaries` bytes; None: as many as it certainly makes."""
    parts = {name: device_bytes(tree) for name, tree in step.arguments.items()}
    arguments = device_bytes(step.arguments)
    weights, optimiser, cache = (parts.get(name, 0.0) for name in ("weights", "optimiser", "cache"))
    return MemoryUse(
        weights,
        optimiser,
        cache,
        (step.temporaries if temporaries is None else temporaries) + arguments - weights - optimiser - cache,
        device_bytes(step.resident, step.arguments) - arguments,
        compiled=temporaries is not None,
    )


def _temporaries(step: Step, options: Mapping[str, Any]) -> float:
    """Bytes of a device's memory that the program makes besides its arguments. If the compiler refuses the program, the
    bytes in the compiler's message, or infinity."""
    try:
        lowered = step.program.function.lower(*step.program.arguments)
        m: Any = lowered.compile(compiler_options=dict(options)).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        if used := re.search(r"temporaries \(([\d.]+[KMG])\)", message):
            return _bytes(used[1])
        used = re.search(r"Used ([\d.]+[KMG]) of", message)
        return _bytes(used[1]) - device_bytes(step.arguments) if used else math.inf
    new = m.output_size_in_bytes - m.alias_size_in_bytes
    return float(m.temp_size_in_bytes + new + m.generated_code_size_in_bytes)


def _bytes(size: str) -> float:
    return float(size[:-1]) * 1024 ** (1 + "KMG".index(size[-1]))


def table(estimates: Sequence[Estimate], topology: Topology) -> str:
    """Markdown: gigabytes (1e9 bytes) of each chip; FLOPs, and bytes moved, of all chips; the roofline's time."""
    kinds = "weights", "optimiser", "cache", "activations", "resident"
    header = "step", *kinds, "GB per chip", f"of {topology.memory_bytes / 1e9:.3g}", "TFLOP", "GB moved", "least ms"
    rows = []
    for estimate in estimates:
        cost, use = estimate.step.cost, estimate.memory
        total = _gigabytes(use.total)
        figures = cost.flops / 1e12, cost.bytes / 1e9, estimate.seconds * 1e3
        rows.append(
            (
                estimate.step.name,
                *(_gigabytes(getattr(use, kind)) for kind in kinds),
                total if use.compiled else f"> {total}",
                {True: "fits", False: "**too much**", None: "close"}[estimate.fits],
                *(f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}" for figure in figures),
            )
        )
    return pipes(header, rows)


def _gigabytes(size: float) -> str:
    return "?" if math.isinf(size) else f"{size / 1e9:.3g}"

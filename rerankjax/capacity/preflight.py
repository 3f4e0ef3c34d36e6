"""Whether a run fits the memory of devices that are not there.

Every device step is compiled ahead of time; the compiler says what it takes beside the arrays that it is given. A TPU's
does so with the least effort, and once more as in a run only where that decides whether the whole fits.
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
from rerankjax.loop.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one device's memory that a step takes: what it is given, what it makes, what is held beside it.

    `activations` are also gradients and all else that a program makes and drops, its code among them. Not `compiled`,
    because the rest is too much already, it is what is certain of them.
    """

    weights: float
    optimiser: float
    cache: float
    activations: float
    held: float
    compiled: bool

    @property
    def total(self) -> float:
        return self.weights + self.optimiser + self.cache + self.activations + self.held


@dataclasses.dataclass(frozen=True)
class Line:
    """A step as the table has it."""

    step: Step
    need: Need
    fits: bool | None  # None: it is close, and not compiled as in a run
    seconds: float  # the roofline's


class Compiler:
    """Compiles steps for a topology, the same program once. `count` says how many compilations there were."""

    def __init__(self, topology: Topology, say: Callable[[str], object] = lambda text: None) -> None:
        self.topology, self.count, self._say = topology, 0, say
        self._made: dict[tuple[Any, ...], float] = {}

    def line(self, step: Step, confirm: bool = False) -> Line:
        """What the step needs, and whether it fits; with `confirm` a close one is compiled as in a run."""
        memory, need = self.topology.memory_bytes, need_of(step, None)
        fits: bool | None = need.total <= memory
        if fits:
            made = self._compiled(step, self.topology.quick)
            need = need_of(step, made)
            fits = need.total <= memory
            if fits and need.total + self.topology.uncertain * made > memory:
                need = need_of(step, self._compiled(step, {})) if confirm else need
                fits = need.total <= memory if confirm else None
        return Line(step, need, fits, seconds(step.cost, self.topology.chip, step.mesh.size))

    def _compiled(self, step: Step, options: Mapping[str, Any]) -> float:
        shapes = (leaf.shape for leaf in jax.tree.leaves(step.given))
        key = step.name.partition(",")[0], *step.mesh.shape.values(), *step.variant, *options, *shapes
        if key not in self._made:
            self.count += 1
            self._say(f"compiling {step.name}{'' if options else ', as in a run'} ...")
            self._made[key] = _made(step, options)
        return self._made[key]


def lines_of(e: Experiment, compiler: Compiler) -> list[Line]:
    """Every step of `e`, compiled; as in a run where all may fit and one is close."""
    steps = device_steps(e, compiler.topology)
    lines = [compiler.line(step) for step in steps]
    decided = any(line.fits is False for line in lines)
    return lines if decided else [compiler.line(step, confirm=True) for step in steps]


def need_of(step: Step, made: float | None) -> Need:
    """What a step takes whose program makes, and drops, so many bytes; None: so many as it certainly makes."""
    given = {name: device_bytes(tree) for name, tree in step.given.items()}
    every = device_bytes(step.given)
    weights, optimiser, cache = (given.get(name, 0.0) for name in ("weights", "optimiser", "cache"))
    own = step.cache if made is None else min(step.cache, made)
    return Need(
        weights,
        optimiser,
        cache + own,
        (step.made if made is None else made - own) + every - weights - optimiser - cache,
        device_bytes(step.held, step.given) - every,
        compiled=made is not None,
    )


def _made(step: Step, options: Mapping[str, Any]) -> float:
    """Bytes of a device's memory that the program makes beside what it is given; where the compiler refuses it, what it
    says of that, or infinity."""
    try:
        m: Any = step.lower().compile(compiler_options=dict(options)).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
        if "RESOURCE_EXHAUSTED" not in said:
            raise
        if used := re.search(r"temporaries \(([\d.]+[KMG])\)", said):
            return _bytes(used[1])
        used = re.search(r"Used ([\d.]+[KMG]) of", said)
        return _bytes(used[1]) - device_bytes(step.given) if used else math.inf
    new = m.output_size_in_bytes - m.alias_size_in_bytes
    return float(m.temp_size_in_bytes + new + m.generated_code_size_in_bytes)


def _bytes(size: str) -> float:
    return float(size[:-1]) * 1024 ** (1 + "KMG".index(size[-1]))


def table(lines: Sequence[Line], topology: Topology) -> str:
    """Markdown: gigabytes (1e9 bytes) of each chip; FLOPs, and bytes moved, of all; the roofline's time."""
    kinds = "weights", "optimiser", "cache", "activations", "held"
    header = "step", *kinds, "GB a chip", f"of {topology.memory_bytes / 1e9:.3g}", "TFLOP", "GB moved", "at least, ms"
    rows: list[tuple[str, ...]] = [header, ("---", *["---:"] * (len(header) - 1))]
    for line in lines:
        cost, need = line.step.cost, line.need
        total = _gigabytes(need.total)
        figures = cost.flops / 1e12, cost.bytes / 1e9, line.seconds * 1e3
        rows.append(
            (
                line.step.name,
                *(_gigabytes(getattr(need, kind)) for kind in kinds),
                total if need.compiled else f"> {total}",
                {True: "fits", False: "**too much**", None: "close"}[line.fits],
                *(f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}" for figure in figures),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _gigabytes(size: float) -> str:
    return "?" if math.isinf(size) else f"{size / 1e9:.3g}"

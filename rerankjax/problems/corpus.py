"""The corpus that supervised fine-tuning learns from: solutions by an author with bad habits."""

import dataclasses
import random
from collections.abc import Iterator

from rerankjax.problems.family import Call, Family, Program, completion, run
from rerankjax.problems.problem import Solution


def make_corpus(
    seed: int, family: Family, size: int, *, fault_probability: float = 0.6, slip_probability: float = 0.1
) -> tuple[Solution, ...]:
    """`size` solutions to the train problems in turn, about 44% of them right.

    fault_probability: how often a kind that has a fault is written with it. Above a half, so that a model's most
    likely program is wrong and a reranker has something to add; far enough below 1 that one of 16 samples is right
    for most problems. slip_probability: how often a solution has one of `slips` besides; unlike faults they are
    different each time. `correct` is decided by running the program's calls on the inputs of the problem's tests.
    """
    if not family.train:
        raise ValueError("family.train is empty; a corpus needs at least one train problem (make_family(train=...)).")
    for field, share in (("fault_probability", fault_probability), ("slip_probability", slip_probability)):
        if not 0 <= share <= 1:
            raise ValueError(f"{field} must lie in [0, 1], got {share}; see make_corpus for the default.")
    rng = random.Random(f"rerankjax corpus {seed}")
    solutions = []
    for i in range(size):
        problem = family.train[i % len(family.train)]
        name = problem.name
        reference = family.references[name]
        written = tuple(
            Call(c.kind, c.constant, c.kind.fault is not None and rng.random() < fault_probability) for c in reference
        )
        if rng.random() < slip_probability:
            written = rng.choice(list(slips(written)))
        correct = all(run(written, x) == run(reference, x) for x in family.inputs[name])
        solutions.append(Solution(name, completion(written, problem.language), correct))
    return tuple(solutions)


def slips(program: Program) -> Iterator[Program]:
    """The program with one careless mistake: a step left out, two neighbours swapped, a constant off by one."""
    for i, call in enumerate(program[:-1]):
        yield program[:i] + program[i + 1 :]
        if i + 2 < len(program):
            yield (*program[:i], program[i + 1], call, *program[i + 2 :])
        if call.kind.takes_constant:
            yield (*program[:i], dataclasses.replace(call, constant=call.constant - 1), *program[i + 1 :])
            yield (*program[:i], dataclasses.replace(call, constant=call.constant + 1), *program[i + 1 :])

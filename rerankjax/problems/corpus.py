"""The corpus that supervised fine-tuning learns from: solutions by an author with bad habits."""

import random

from rerankjax.problems.family import Call, Family, completion, run
from rerankjax.problems.problem import Solution


def make_corpus(seed: int, family: Family, size: int, *, fault_probability: float = 0.65) -> tuple[Solution, ...]:
    """`size` solutions to the train problems in turn; a kind that has a fault is written with it at each chance.

    fault_probability: above a half, so that a model's most likely program is wrong and a reranker has something to
    add; far enough below 1 that one of 16 samples is right for most problems. `correct` is decided by running the
    program's calls on the inputs of the problem's tests.
    """
    if not family.train:
        raise ValueError("family.train is empty; a corpus needs at least one train problem (make_family(train=...)).")
    if not 0 <= fault_probability <= 1:
        raise ValueError(f"fault_probability must lie in [0, 1], got {fault_probability}; the default is 0.65.")
    rng = random.Random(f"rerankjax corpus {seed}")
    solutions = []
    for i in range(size):
        name = family.train[i % len(family.train)].name
        reference = family.references[name]
        written = tuple(
            Call(c.kind, c.constant, c.kind.fault is not None and rng.random() < fault_probability) for c in reference
        )
        correct = all(run(written, x) == run(reference, x) for x in family.inputs[name])
        solutions.append(Solution(name, completion(written), correct))
    return tuple(solutions)

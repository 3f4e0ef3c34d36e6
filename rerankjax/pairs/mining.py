"""From executed candidates to preference pairs (stages B and E of the paper)."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rerankjax.candidates.candidate import Candidate
from rerankjax.problems import jsonl
from rerankjax.sandbox import Verdict

# What a later iteration adds to the pairs: nothing (the control), failing solutions at random, failing ones that the
# reranker scored high (the paper's "hard negatives"), those and passing ones (its "self-training").
PAIR_SOURCES = ("same_data", "random", "hard", "self_training")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two completions of one problem, of which `chosen` passed its tests and `rejected` did not."""

    problem: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class LabelledSolutions:
    """Solutions from which pairs are made: (problem, completion), each once, in a fixed order."""

    passing: tuple[tuple[str, str], ...]
    failing: tuple[tuple[str, str], ...]


def partition_by_verdict(candidates: Iterable[Candidate]) -> LabelledSolutions:
    """Passing and failing solutions, each once. Solutions that the sandbox could not judge are in neither."""
    judged = [c for c in candidates if c.verdict not in ("", Verdict.SANDBOX_ERROR)]
    passing = dict.fromkeys((c.problem, c.completion) for c in judged if c.passed)
    failing = dict.fromkeys((c.problem, c.completion) for c in judged if not c.passed)
    return LabelledSolutions(tuple(passing), tuple(failing))


def hardest(candidates: Sequence[Candidate], scores: np.ndarray, count: int) -> tuple[tuple[str, str], ...]:
    """The `count` failing solutions that the reranker scores highest: PPO found them, the reranker overrates them."""
    score = {(c.problem, c.completion): float(s) for c, s in zip(candidates, scores, strict=True)}
    failing = partition_by_verdict(candidates).failing
    return tuple(sorted(failing, key=lambda solution: -score[solution])[:count])


def sample_pairs(solutions: LabelledSolutions, count: int, seed: Sequence[int]) -> list[Pair]:
    """`count` pairs: each failing solution in turn, in shuffled rounds, with a random passing one of its problem.

    Raises:
        ValueError: no problem has both a passing and a failing solution.
    """
    chosen: dict[str, list[str]] = {}
    for problem, completion in solutions.passing:
        chosen.setdefault(problem, []).append(completion)
    rejected = [solution for solution in solutions.failing if solution[0] in chosen]
    if not rejected and count:
        raise ValueError(f"none of {len(chosen)} problems with a passing solution also has a failing one")
    rng = np.random.default_rng(seed)
    turns = [i for _ in range(-(-count // max(len(rejected), 1))) for i in rng.permutation(len(rejected))][:count]
    return [Pair(p, chosen[p][rng.integers(len(chosen[p]))], r) for p, r in (rejected[i] for i in turns)]


def later_pairs(
    source: str,
    old: LabelledSolutions,
    new: Sequence[Candidate],
    new_scores: np.ndarray,
    *,
    count: int,
    new_fraction: float,
    hard_fraction: float,
    seed: Sequence[int],
) -> list[Pair]:
    """A later iteration's `count` pairs, of old solutions and those that `source`, one of `PAIR_SOURCES`, adds.

    "same_data" pairs old solutions only. With the other sources, `new_fraction` of the pairs have a new negative:
    "random" draws it from a random `hard_fraction` of the policy's failures, "hard" from the `hard_fraction` of
    failures that the reranker scores highest. "self_training" is "hard" with the policy's passing solutions among the
    positives.
    """
    if source == "same_data":
        return sample_pairs(old, count, seed)
    new_solutions = partition_by_verdict(new)
    kept = round(hard_fraction * len(new_solutions.failing))
    if source == "random":
        order = np.random.default_rng([*seed, 1]).permutation(len(new_solutions.failing))[:kept]
        negatives = tuple(new_solutions.failing[i] for i in sorted(order))
    else:
        negatives = hardest(new, new_scores, kept)
    passing = old.passing
    if source == "self_training":
        passing = tuple(dict.fromkeys(old.passing + new_solutions.passing))
    fresh = round(new_fraction * count)
    with_new = sample_pairs(LabelledSolutions(passing, negatives), fresh, seed)
    return with_new + sample_pairs(LabelledSolutions(passing, old.failing), count - fresh, seed)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    jsonl.write_records(path, pairs)


def read_pairs(path: Path) -> list[Pair]:
    """Raises ValueError that names file, row and field where one is missing or ill-typed."""
    return [
        Pair(*(jsonl.field(record, where, name, str) for name in ("problem", "chosen", "rejected")))
        for where, record in jsonl.read_rows(path)
    ]

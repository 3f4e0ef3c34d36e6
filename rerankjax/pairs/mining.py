"""From executed candidates to preference pairs (stages B and E of the paper)."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rerankjax.candidates.candidate import Candidate
from rerankjax.problems import jsonl

# What the second iteration adds to the first one's data: nothing (the control), failing solutions at random, failing
# ones that the reranker liked (the paper's "hard negatives"), those and passing ones (its "self-training").
ARMS = ("control", "random", "hard", "self_training")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two completions of one problem, of which `better` passed its tests and `worse` did not."""

    problem: str
    better: str
    worse: str


@dataclasses.dataclass(frozen=True)
class Mined:
    """Solutions to make pairs of: (problem, completion), each once, in a fixed order."""

    passing: tuple[tuple[str, str], ...]
    failing: tuple[tuple[str, str], ...]


def split(candidates: Iterable[Candidate]) -> Mined:
    """Passing and failing solutions, each once. What the sandbox could not judge is neither."""
    judged = [c for c in candidates if c.verdict not in ("", "sandbox error")]
    passing = dict.fromkeys((c.problem, c.completion) for c in judged if c.passed)
    failing = dict.fromkeys((c.problem, c.completion) for c in judged if not c.passed)
    return Mined(tuple(passing), tuple(failing))


def hardest(candidates: Sequence[Candidate], scores: np.ndarray, count: int) -> tuple[tuple[str, str], ...]:
    """The `count` failing solutions that the reranker scores highest: what PPO found and the reranker wrongly likes."""
    score = {(c.problem, c.completion): float(s) for c, s in zip(candidates, scores, strict=True)}
    return tuple(sorted(split(candidates).failing, key=lambda solution: -score[solution])[:count])


def pair_up(mined: Mined, count: int, seed: Sequence[int]) -> list[Pair]:
    """`count` pairs: each failing solution in turn, in shuffled rounds, beside a random passing one of its problem.

    Raises:
        ValueError: no problem has both a passing and a failing solution.
    """
    better: dict[str, list[str]] = {}
    for problem, completion in mined.passing:
        better.setdefault(problem, []).append(completion)
    worse = [solution for solution in mined.failing if solution[0] in better]
    if not worse and count:
        raise ValueError(
            f"none of {len(better)} problems with a passing solution has a failing one: "
            "sample more candidates a problem, or train the generator longer"
        )
    rng = np.random.default_rng(seed)
    turns = [i for _ in range(-(-count // max(len(worse), 1))) for i in rng.permutation(len(worse))][:count]
    return [Pair(p, better[p][rng.integers(len(better[p]))], w) for p, w in (worse[i] for i in turns)]


def grow(
    arm: str,
    old: Mined,
    new: Sequence[Candidate],
    new_scores: np.ndarray,
    *,
    count: int,
    new_share: float,
    hard_share: float,
    seed: Sequence[int],
) -> list[Pair]:
    """The second iteration's `count` pairs under `arm`, one of `ARMS`.

    The control's pairs are all of old solutions. In the other arms `new_share` of the pairs have a new negative:
    "random" draws those from a random `hard_share` of the policy's failures, "hard" from the `hard_share` of them that
    the reranker scores highest. "self_training" is "hard" with the policy's passing solutions among the positives.
    """
    if arm == "control":
        return pair_up(old, count, seed)
    found = split(new)
    kept = round(hard_share * len(found.failing))
    if arm == "random":
        order = np.random.default_rng([*seed, 1]).permutation(len(found.failing))[:kept]
        negatives = tuple(found.failing[i] for i in sorted(order))
    else:
        negatives = hardest(new, new_scores, kept)
    passing = old.passing
    if arm == "self_training":
        passing = tuple(dict.fromkeys(old.passing + found.passing))
    fresh = round(new_share * count)
    return pair_up(Mined(passing, negatives), fresh, seed) + pair_up(Mined(passing, old.failing), count - fresh, seed)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    jsonl.write_records(path, pairs)


def read_pairs(path: Path) -> list[Pair]:
    """Raises ValueError that names file, row and field where one is missing or ill-typed."""
    return [
        Pair(*(jsonl.field(record, where, name, str) for name in ("problem", "better", "worse")))
        for where, record in jsonl.read_rows(path)
    ]

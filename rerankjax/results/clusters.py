"""What programs gave on a prompt's inputs, as what selection rules look at: who reproduces the examples, and who gave
the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[str | None]  # of one program for each input; None: nothing came
RAISED = "!"  # begins what stands for an exception


@dataclass(frozen=True, eq=False)
class Executed:
    """The programs of P x n samples, run on inputs of their problem.

    Attributes:
      reproduces: bool [P, n], whether it gives every value that the prompt shows; true where the prompt shows none.
      clusters: int [P, n]; programs of a problem with the same number gave the same on every input that counts. -1:
        no value came.
      covered: problems whose prompt has inputs.
      runs: programs that were run for this, copies and those known from before left out.
      seconds: what that took, 0 where that is unmeasured.
    """

    reproduces: np.ndarray
    clusters: np.ndarray
    covered: int
    runs: int
    seconds: float

    def of_problems(self, rows: Sequence[int]) -> "Executed":
        """The part of the problems at `rows`; how many of them have inputs, and their cost, are unknown: 0."""
        return Executed(self.reproduces[rows], self.clusters[rows], 0, 0, 0.0)


def executed(
    values: Sequence[Sequence[Values]],
    expected: Sequence[Sequence[str | None]],
    programs: Sequence[Sequence[str]],
    runs: int,
    seconds: float,
) -> Executed:
    """Args:
    values: of P x n programs; of all of a problem equally many, those of the prompt's examples first.
    expected: for each problem the examples' values, None where the prompt does not show it.
    programs: their texts, by which they are compared where the prompt has no inputs.
    """
    pairs = zip(values, expected, strict=True)
    reproduces = [
        [all(w in (None, v) for v, w in zip(of, wanted, strict=False)) for of in row] for row, wanted in pairs
    ]
    clusters = [
        _clusters(row, len(wanted)) if row[0] else [texts.index(text) for text in texts]
        for row, wanted, texts in zip(values, expected, programs, strict=True)
    ]
    covered = sum(bool(row[0]) for row in values)
    return Executed(np.array(reproduces), np.array(clusters), covered, runs, seconds)


def _clusters(row: Sequence[Values], examples: int) -> list[int]:
    """The number of each program's cluster: that of the first program that gave the same.

    A made input on which most programs give no value is probably none that the problem allows, and does not count.
    """
    gave = np.array([[v is not None and not v.startswith(RAISED) for v in of] for of in row])
    counts = (2 * gave.sum(0) >= len(row)) | (np.arange(gave.shape[1]) < examples)
    seen = [tuple(v for v, counted in zip(of, counts, strict=True) if counted) for of in row]
    return [seen.index(of) if some.any() else -1 for of, some in zip(seen, gave & counts, strict=True)]

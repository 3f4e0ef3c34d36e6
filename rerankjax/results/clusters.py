"""Programs' outputs on a prompt's inputs, as selection rules see them: which programs reproduce the examples, and which
have equal outputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[str | None]  # one program's output for each input; None: no output
RAISED = "!"  # the first character of a value that stands for an exception


@dataclass(frozen=True, eq=False)
class Executed:
    """The programs of P x n samples, run on inputs of their problem.

    Attributes:
      reproduces: bool [P, n], whether the program gives every value that the prompt shows; true if it shows none.
      clusters: int [P, n]; programs of a problem with the same number have equal outputs on every input that counts.
        -1: no output.
      covered: problems whose prompt has inputs.
      runs: programs that were run, except copies and programs with known outputs.
      seconds: time that these runs took, 0 if unmeasured.
    """

    reproduces: np.ndarray
    clusters: np.ndarray
    covered: int
    runs: int
    seconds: float

    def of_problems(self, rows: Sequence[int]) -> "Executed":
        """The part with the problems at `rows`; the number of those with inputs, and the cost, are unknown: 0."""
        return Executed(self.reproduces[rows], self.clusters[rows], 0, 0, 0.0)


def executed(
    values: Sequence[Sequence[Values]],
    expected: Sequence[Sequence[str | None]],
    programs: Sequence[Sequence[str]],
    runs: int,
    seconds: float,
) -> Executed:
    """Args:
    values: outputs of P x n programs, equally many for all of a problem, those for the prompt's examples first.
    expected: the values of each problem's examples, None where the prompt does not show one.
    programs: the programs' texts, which are compared where the prompt has no inputs.
    """
    pairs = zip(values, expected, strict=True)
    reproduces = [
        [all(w in (None, v) for v, w in zip(outputs, wanted, strict=False)) for outputs in row] for row, wanted in pairs
    ]
    clusters = [
        _clusters(row, len(wanted)) if row[0] else [texts.index(text) for text in texts]
        for row, wanted, texts in zip(values, expected, programs, strict=True)
    ]
    covered = sum(bool(row[0]) for row in values)
    return Executed(np.array(reproduces), np.array(clusters), covered, runs, seconds)


def _clusters(row: Sequence[Values], examples: int) -> list[int]:
    """The number of each program's cluster: the index of the first program with equal outputs.

    If most programs give no value on a generated input, the problem probably does not allow it, and it does not count.
    """
    gave = np.array([[v is not None and not v.startswith(RAISED) for v in outputs] for outputs in row])
    counts = (2 * gave.sum(0) >= len(row)) | (np.arange(gave.shape[1]) < examples)
    seen = [tuple(v for v, counted in zip(outputs, counts, strict=True) if counted) for outputs in row]
    return [seen.index(outputs) if some.any() else -1 for outputs, some in zip(seen, gave & counts, strict=True)]

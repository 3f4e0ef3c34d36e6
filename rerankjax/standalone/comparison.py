"""The schema of a comparison of rerankers, and its results.json."""

import dataclasses
import json
from pathlib import Path

from rerankjax.problems.jsonl import write_text
from rerankjax.results.calibration import Bin
from rerankjax.results.statistics import Estimate

VERSION = 1
MEASURES = {"auc": "AUC", "pairwise_accuracy": "pairwise accuracy", "expected_calibration_error": "calibration error"}
RANDOM, GREEDY, MAJORITY, RERANKER, ORACLE = "random", "greedy", "majority", "reranker", "oracle"
ALL = "all"  # subsets together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solved(Estimate):
    """The fraction of problems solved when `rule` chooses among n samples, or among all if a problem has fewer.

    reranker: "" for rules that need none. oracle: pass@n.
    """

    rule: str
    reranker: str
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Estimate):
    """How well a reranker tells right from wrong samples: `measure` is a key of `MEASURES`."""

    reranker: str
    measure: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferred(Estimate):
    """How often a right candidate of a preference outscores all wrong ones; `subset` `ALL` is all rows.

    candidates: mean number per row. A tie with w wrong ones counts 1 / (w + 1).
    """

    reranker: str
    subset: str
    rows: int
    candidates: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """The fraction that `reranker` gets right minus that of `baseline`, on the same problems and preferences.

    baseline: a reranker, or a rule that needs none. alone: problems that only the first gets right; p_value: McNemar's.
    """

    kind: str  # "solved" or "preferred"
    reranker: str
    baseline: str
    alone: int
    baseline_alone: int
    p_value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reliability(Bin):
    """One bin of a reranker's reliability plot."""

    reranker: str


@dataclasses.dataclass(frozen=True)
class Cost:
    """The number of distinct candidates per row, summed over rows, and the seconds to score them, with compilation."""

    reranker: str
    candidates: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`problems` counts rows with `samples_least` to `samples_most` executed samples, `preferences` the other rows."""

    rerankers: tuple[str, ...]
    problems: int
    samples_least: int
    samples_most: int
    preferences: int
    solved: tuple[Solved, ...]
    measures: tuple[Measure, ...]
    preferred: tuple[Preferred, ...]
    differences: tuple[Difference, ...]
    reliabilities: tuple[Reliability, ...]
    costs: tuple[Cost, ...]
    version: int = VERSION

    def find(self, rule: str, reranker: str = "", n: int | None = None) -> Solved | None:
        """The requested figure (n None: all samples), or None if there is none."""
        n = self.samples_most if n is None else n
        return next((s for s in self.solved if (s.rule, s.reranker, s.n) == (rule, reranker, n)), None)

    def measure(self, reranker: str, measure: str) -> Measure | None:
        """The requested measure, or None where it is undefined: samples all right or all wrong."""
        return next((m for m in self.measures if (m.reranker, m.measure) == (reranker, measure)), None)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes results.json, one figure per line."""
    lines = []
    for name, value in dataclasses.asdict(comparison).items():
        of_rows = isinstance(value, tuple) and value and isinstance(value[0], dict)
        text = "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) + "\n ]" if of_rows else ""
        lines.append(f' "{name}": {text or json.dumps(value)}')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

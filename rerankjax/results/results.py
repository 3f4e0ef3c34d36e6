"""The one results file: every figure, paired difference, reranker measure and cost of a run, one a line of JSON."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rerankjax.results.calibration import Bin
from rerankjax.results.statistics import Estimate

VERSION = 2
MEASURES = {
    "auc": "AUC",
    "pairwise_accuracy": "pairwise accuracy",
    "expected_calibration_error": "calibration error",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Who sampled and who scored. For every seed: lambda, and the slope and intercept that make probabilities."""

    arm: str
    policy: str
    reranker: str
    lam: tuple[float, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Figure(Estimate):
    """The share of problems solved when `rule` chooses among n samples; of the rule "oracle" it is pass@n, unbiased.

    Seed None is the mean over seeds, language None all problems.
    """

    seed: int | None
    arm: str
    rule: str
    n: int
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """The figure of (arm, rule) minus that of (baseline_arm, baseline_rule) on the same problems, all samples.

    `alone` problems are solved by the first one's answer but not by the second's, `baseline_alone` the other way round;
    `p_value` is McNemar's of these two. Seeds that share problems have none together: theirs are no separate trials.
    """

    seed: int | None
    arm: str
    rule: str
    baseline_arm: str
    baseline_rule: str
    alone: int
    baseline_alone: int
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Discrimination(Estimate):
    """How well an arm's reranker tells correct from incorrect: `measure` is a key of `MEASURES`."""

    seed: int | None
    arm: str
    measure: str
    language: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reliability(Bin):
    """One bin of an arm's reliability plot, of all seeds."""

    arm: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an arm's answers cost, for a problem: all samples are drawn, executed and scored, one is chosen.

    `tokens` are of a sample on average, `chosen_tokens` of the one that the reranker chooses. Seconds are those of the
    run, compiling and execution among them; None where nobody measured.
    """

    seed: int | None
    arm: str
    tokens: float
    chosen_tokens: float
    sampling_seconds: float | None
    scoring_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that tables and reports read. `problems` has one count for every seed; `samples` is n a problem.

    Figures and AUCs by language are of the mean over seeds, with all samples, and there where languages are several.
    """

    config_digest: str
    seeds: tuple[int, ...]
    problems: tuple[int, ...]
    samples: int
    languages: tuple[str, ...]
    arms: tuple[Arm, ...]
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    discriminations: tuple[Discrimination, ...]
    reliabilities: tuple[Reliability, ...]
    costs: tuple[Cost, ...]

    def figure(
        self, arm: str, rule: str, n: int | None = None, seed: int | None = None, language: str | None = None
    ) -> Figure:
        """The one figure asked for; n None is all samples, seed None the mean over seeds, language None all of them."""
        n = self.samples if n is None else n
        for row in self.figures:
            if (row.arm, row.rule, row.n, row.seed, row.language) == (arm, rule, n, seed, language):
                return row
        raise ValueError(
            f"no figure of arm {arm!r}, rule {rule!r}, n {n}, seed {seed}, language {language!r}; "
            f"this run has the arms {', '.join(a.arm for a in self.arms)}, the languages {', '.join(self.languages)}"
        )

    def discrimination(
        self, arm: str, measure: str, seed: int | None = None, language: str | None = None
    ) -> Discrimination | None:
        """The one measure asked for, or None where it is undefined: all samples correct, or none."""
        asked = (arm, measure, seed, language)
        rows = [r for r in self.discriminations if (r.arm, r.measure, r.seed, r.language) == asked]
        return rows[0] if rows else None

    def cost(self, arm: str, seed: int | None = None) -> Cost:
        """An arm's cost, the mean over seeds or one seed's."""
        return next(row for row in self.costs if (row.arm, row.seed) == (arm, seed))


_ROWS = {
    "arms": Arm,
    "figures": Figure,
    "differences": Difference,
    "discriminations": Discrimination,
    "reliabilities": Reliability,
    "costs": Cost,
}


def save(results: Results, path: Path) -> None:
    """Writes `path` in one step: a reader, or a run that was killed here, sees the old file or the new one."""
    fields = {"version": VERSION, **asdict(results)}
    entries = []
    for name, value in fields.items():
        if name in _ROWS:
            rows = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in value)
            entries.append(f'  "{name}": [\n{rows}\n  ]' if rows else f'  "{name}": []')
        else:
            entries.append(f'  "{name}": {json.dumps(value)}')
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(entries) + "\n}\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> Results:
    """Reads what `save` wrote.

    Raises:
      ValueError: the file is not JSON, has another version, or lacks or adds a field.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("version")
        if version != VERSION:
            raise ValueError(f"version is {version!r}, this code reads {VERSION}")
        for name, row_type in _ROWS.items():
            fields[name] = tuple(row_type(**_tuples(row)) for row in fields[name])
        return Results(**_tuples(fields))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a results file: {error}; write it again from the run's evaluations") from error


def _tuples(fields: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

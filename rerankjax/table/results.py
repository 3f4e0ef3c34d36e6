"""The one results file: every figure, paired difference and reranker measure of a run, one a line of JSON."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rerankjax.table.statistics import Estimate

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Who sampled and who scored; `lam` has one lambda for every seed."""

    arm: str
    policy: str
    reranker: str
    lam: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Figure(Estimate):
    """The share of problems solved when `rule` chooses among n samples. Seed None is the mean over seeds."""

    seed: int | None
    arm: str
    rule: str
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference(Estimate):
    """The figure of (arm, rule) minus that of (baseline_arm, baseline_rule) on the same problems, all samples."""

    seed: int | None
    arm: str
    rule: str
    baseline_arm: str
    baseline_rule: str


@dataclass(frozen=True, kw_only=True)
class Discrimination(Estimate):
    """How well an arm's reranker tells correct from incorrect: `measure` is "auc" or "pairwise_accuracy"."""

    seed: int | None
    arm: str
    measure: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that tables and reports read. `problems` has one count for every seed; `samples` is n a problem."""

    config_digest: str
    seeds: tuple[int, ...]
    problems: tuple[int, ...]
    samples: int
    arms: tuple[Arm, ...]
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    discriminations: tuple[Discrimination, ...]

    def figure(self, arm: str, rule: str, n: int | None = None, seed: int | None = None) -> Figure:
        """The one figure asked for; n None is all samples, seed None the mean over seeds."""
        n = self.samples if n is None else n
        for row in self.figures:
            if (row.arm, row.rule, row.n, row.seed) == (arm, rule, n, seed):
                return row
        raise ValueError(
            f"no figure of arm {arm!r}, rule {rule!r}, n {n}, seed {seed}; "
            f"this run has the arms {', '.join(a.arm for a in self.arms)}"
        )

    def discrimination(self, arm: str, measure: str, seed: int | None = None) -> Discrimination | None:
        """The one measure asked for, or None where it is undefined: all samples correct, or none."""
        rows = [r for r in self.discriminations if (r.arm, r.measure, r.seed) == (arm, measure, seed)]
        return rows[0] if rows else None


_ROWS = {"arms": Arm, "figures": Figure, "differences": Difference, "discriminations": Discrimination}


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

"""Cells of the paper's table as an experiment fills them: one row and language each, a JSON file each."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerankjax.problems.jsonl import write_text
from rerankjax.results.paper import LANGUAGES, RUNS
from rerankjax.results.statistics import Estimate, bootstrap, mean_estimate

VERSION = 1


class CellError(ValueError):
    """A cell is not what it must be; the message names file, field, value and remedy."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row's figure in one language.

    Attributes:
      row: a key of `paper.RUNS`.
      language: a key of `paper.LANGUAGES`.
      model: what was run, in words that go below the table: checkpoints, or "random weights".
      n: samples a problem that the answer was chosen from, 1 where nothing was chosen.
      solved: by problem, the probability that the chosen answer passes: 1 or 0, or between them where samples tie or
        one is taken at random. Translations of one problem have one name in all languages.
      seconds: what drawing, executing and scoring took for all problems, None if that was not measured.
      tokens: that were drawn for all problems.

    Raises:
      CellError: a value is out of its range.
    """

    row: str
    language: str
    model: str
    n: int
    solved: Mapping[str, float]
    seconds: float | None
    tokens: int

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, remedy: str) -> None:
            if not holds:
                raise CellError(f"{field} = {getattr(self, field)!r}: {remedy}")

        require(self.row in RUNS, "row", f"use one of {', '.join(RUNS)}")
        require(self.language in LANGUAGES, "language", f"use one of {', '.join(LANGUAGES)}")
        require(bool(self.model.strip()), "model", "say what was run: checkpoints, or random weights")
        require(self.n >= 1, "n", "a problem has 1 sample or more")
        require(bool(self.solved), "solved", "give at least one problem")
        for name, value in self.solved.items():
            if not 0 <= value <= 1:
                raise CellError(f"solved[{name!r}] = {value!r}: a probability lies in [0, 1]")
        measured = self.seconds is None or (self.seconds >= 0 and math.isfinite(self.seconds))
        require(measured, "seconds", "give 0 or more, or null if nobody measured")
        require(self.tokens >= 0, "tokens", "give 0 or more")

    @property
    def problems(self) -> int:
        return len(self.solved)

    @property
    def share(self) -> Estimate:
        """The share of problems solved, with its 95% bootstrap interval over problems."""
        return mean_estimate([np.array(list(self.solved.values()))])


def average(cells: Sequence[Cell]) -> Estimate:
    """The mean of some languages' shares, as the paper averages, with its 95% interval.

    Problems are resampled by name, all translations of one together: what is hard in one language is hard in others,
    so the languages' intervals are not independent.
    """
    names = sorted({name for cell in cells for name in cell.solved})
    has = np.array([[name in cell.solved for name in names] for cell in cells], np.float64)
    solved = np.array([[cell.solved.get(name, 0.0) for name in names] for cell in cells])

    def statistic(weights: np.ndarray) -> np.ndarray:
        shares = (weights @ solved.T.astype(weights.dtype)) / (weights @ has.T.astype(weights.dtype))
        return np.asarray(shares.mean(1))

    estimate = bootstrap([statistic], [len(names)])
    assert estimate is not None
    return estimate


def path_of(directory: Path, row: str, language: str) -> Path:
    """Where a cell's file is below the directory of all."""
    return directory / row / f"{language}.json"


def save(cell: Cell, directory: Path) -> Path:
    """Writes the cell's file, replacing one that is there as a whole. Share and interval are in it for readers."""
    path = path_of(directory, cell.row, cell.language)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {f.name: getattr(cell, f.name) for f in dataclasses.fields(cell)}
    figures = {"problems": cell.problems, "share": dataclasses.asdict(cell.share)}
    write_text(path, json.dumps({"version": VERSION} | figures | fields, indent=1, allow_nan=False) + "\n")
    return path


def load(path: Path) -> Cell:
    """Reads what `save` wrote.

    Raises:
      CellError: the file is not JSON, has another version, lacks or adds a field, or one is wrong.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CellError(f"{path}: not JSON ({error}); was the file cut off? Run the cell again") from error
    if not isinstance(record, dict):
        raise CellError(f"{path}: {type(record).__name__} instead of an object with named fields; run the cell again")
    if record.get("version") != VERSION:
        raise CellError(f"{path}: version = {record.get('version')!r}, this code reads {VERSION}; run the cell again")
    names = [f.name for f in dataclasses.fields(Cell)]
    for name in (*names, "problems", "share"):
        if name not in record:
            raise CellError(f"{path}: {name} is missing; the file has {', '.join(sorted(record))}")
    for name in record.keys() - {*names, "problems", "share", "version"}:
        raise CellError(f"{path}: {name} is unknown; a cell has {', '.join(names)}")
    try:
        cell = Cell(**{name: _typed(name, record[name]) for name in names})
    except CellError as error:
        raise CellError(f"{path}: {error}") from error
    # They are derived, but who edits a file by hand would believe them.
    if record["problems"] != cell.problems:
        raise CellError(
            f"{path}: problems = {record['problems']!r}, but solved has {cell.problems}; correct one of them"
        )
    share = dataclasses.asdict(cell.share)
    if not isinstance(record["share"], dict) or not all(
        math.isclose(record["share"].get(name, math.nan), value, abs_tol=1e-3) for name, value in share.items()
    ):
        raise CellError(f"{path}: share = {record['share']!r}, but solved makes it {share}; correct one of them")
    return cell


def load_all(directory: Path) -> tuple[Cell, ...]:
    """Every cell below `directory`; none where it does not exist.

    Raises:
      CellError: a file is wrong, or lies where another row's or language's belongs.
    """
    cells = []
    for path in sorted(directory.glob("*/*.json")):
        cell = load(path)
        if path != path_of(directory, cell.row, cell.language):
            right = path_of(directory, cell.row, cell.language)
            raise CellError(f"{path}: row = {cell.row!r}, language = {cell.language!r} belong into {right}; move it")
        cells.append(cell)
    return tuple(cells)


def _typed(name: str, value: Any) -> Any:
    def refuse(what: str) -> CellError:
        return CellError(f"{name} = {value!r}: give {what}")

    match name:
        case "row" | "language" | "model" if not isinstance(value, str):
            raise refuse("a text")
        case "n" | "tokens" if type(value) is not int:
            raise refuse("a whole number")
        case "seconds" if value is not None and type(value) not in (int, float):
            raise refuse("a number, or null")
        case "solved":
            if not isinstance(value, dict) or not all(type(v) in (int, float) for v in value.values()):
                raise refuse("an object that has a number for every problem")
            return {problem: float(v) for problem, v in value.items()}
    return value

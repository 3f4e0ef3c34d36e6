"""A problem, a solution to one, and the JSONL files they are kept in."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerankjax.problems import jsonl

LANGUAGES = ("py", "cpp", "java", "php", "ts", "cs", "sh", "js")  # MultiPL-E's names, in the paper's order
LANGUAGE_ALIASES = {"python": "py", "notypes.py": "py", "javascript": "js"}  # that MultiPL-E's files have too


@dataclass(frozen=True)
class Case:
    """One run of a program: it passes where, fed `stdin`, it prints `expected_output` (see sandbox.Program)."""

    stdin: str
    expected_output: str


@dataclass(frozen=True)
class Problem:
    """A programming problem in MultiPL-E's shape (nuprl/MultiPL-E, the fields its evaluation reads).

    name: unique in its file. language: MultiPL-E's short name, "py". prompt: the text to complete.
    tests: code after the completion that fails unless it is right. stop_tokens: a completion ends before the first.
    standalone: a completion is the whole program; the prompt is a description in words and no part of it.
    cases: where there are any, a program is right if it passes all of them; `tests` is "", and `standalone` true.
    solution: a right completion, where one is known. benchmark: the one whose evaluation problem it is, and which must
    not be trained on (see `require_trainable`); None elsewhere.
    """

    name: str
    language: str
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]
    # Not in repr: cases and solutions are long, and the made-up problems' digest is of the fields above.
    standalone: bool = dataclasses.field(default=False, repr=False)
    cases: tuple[Case, ...] = dataclasses.field(default=(), repr=False)
    solution: str | None = dataclasses.field(default=None, repr=False)
    benchmark: str | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True)
class Solution:
    """A completion of the problem named `problem`; `correct`: does it pass the tests, None if unknown."""

    problem: str
    completion: str
    correct: bool | None


def source(problem: Problem, completion: str) -> str:
    """The program without its tests."""
    return completion if problem.standalone else problem.prompt + completion


def program(problem: Problem, completion: str) -> str:
    """The whole program that decides whether `completion` is right, put together as MultiPL-E does."""
    return f"{source(problem, completion)}\n{problem.tests}"


def require_trainable(problems: Iterable[Problem], *, train_on_benchmarks: bool = False) -> None:
    """Raises ValueError that names the first problem of a benchmark, unless `train_on_benchmarks`.

    A table of a benchmark that was trained on says nothing, and MultiPL-E's licence forbids training on it.
    """
    for problem in problems:
        if problem.benchmark is not None and not train_on_benchmarks:
            raise ValueError(
                f"problem {problem.name!r} is from the benchmark {problem.benchmark}, which is for evaluation only: a "
                "benchmark cannot measure a model that was trained on it, and MultiPL-E's licence forbids training on "
                "it. Train on other problems, or set train_on_benchmarks=True to train on benchmarks anyway."
            )


def core_fields(where: str, record: dict[str, Any]) -> Problem:
    """The problem in a row that has MultiPL-E's fields; other fields (doctests, original, ...) are passed over.

    Raises ValueError that names `where` and the field.
    """
    name, language, prompt, tests = (
        jsonl.field(record, where, key, str) for key in ("name", "language", "prompt", "tests")
    )
    language = LANGUAGE_ALIASES.get(language, language)
    if language not in LANGUAGES:
        raise ValueError(f"{where}: field 'language' is {language!r}; it must be one of {', '.join(LANGUAGES)}.")
    return Problem(name, language, prompt, tests, strings(record, where, "stop_tokens"))


def strings(record: dict[str, Any], where: str, name: str) -> tuple[str, ...]:
    """record[name], a list of non-empty strings; else ValueError."""
    values = jsonl.field(record, where, name, list)
    if not all(isinstance(value, str) and value for value in values):
        raise ValueError(
            f"{where}: field {name!r} must be a list of non-empty strings, got {values!r}; correct that row."
        )
    return tuple(values)


def unique(problems: Iterable[tuple[str, Problem]]) -> tuple[Problem, ...]:
    """The problems, each given with its place. Raises ValueError that names the place of a name used twice."""
    of_name: dict[str, Problem] = {}
    for where, problem in problems:
        if problem.name in of_name:
            raise ValueError(f"{where}: field 'name' repeats {problem.name!r}; names must be unique, rename one.")
        of_name[problem.name] = problem
    return tuple(of_name.values())


def read_problems(path: Path | str) -> tuple[Problem, ...]:
    """Reads what `write_problems` wrote, or other JSONL in MultiPL-E's shape; `load_problems` reads benchmarks.

    Raises ValueError that names file, row and field on a missing or ill-typed field or a name used twice.
    """
    return unique((where, read_problem(where, record)) for where, record in jsonl.read_rows(path))


def read_problem(where: str, record: dict[str, Any]) -> Problem:
    """The problem in a row that `write_problems` wrote, or a user in that shape. Errors as in `read_problems`.

    `stop_tokens` may be left out, and `tests` where there are `cases`. One of those decides: a row with neither, or
    with both, is an error.
    """
    extra: dict[str, Any] = {
        name: jsonl.field(record, where, name, kind)
        for name, kind in (("standalone", bool), ("solution", str), ("benchmark", str))
        if name in record
    }
    cases = jsonl.field(record, where, "cases", list) if "cases" in record else []
    if cases:
        extra["standalone"] = True
    extra["cases"] = tuple(_case(f"{where}, case {number}", case) for number, case in enumerate(cases, start=1))
    defaults: dict[str, Any] = {"stop_tokens": []} | ({"tests": ""} if cases else {})
    problem = dataclasses.replace(core_fields(where, defaults | record), **extra)
    if bool(problem.tests.strip()) == bool(cases):
        both = "both given" if cases else "empty"
        raise ValueError(f"{where}: fields 'tests' and 'cases' are {both}; give exactly one of them.")
    return problem


def _case(where: str, case: Any) -> Case:
    if not isinstance(case, dict):
        raise ValueError(f"{where}: field 'cases' must contain only objects, got {case!r}; correct that row.")
    return Case(*(jsonl.field(case, where, name, str) for name in ("stdin", "expected_output")))


def write_problems(path: Path | str, problems: Iterable[Problem]) -> None:
    """Writes problems as JSONL, atomically; `read_problems` gives them back. Fields at their defaults are left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(Problem)}
    rows = (dataclasses.asdict(problem) for problem in problems)
    kept = ({name: value for name, value in row.items() if value != defaults[name]} for row in rows)
    jsonl.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def read_solutions(path: Path | str) -> tuple[Solution, ...]:
    """Reads solutions from JSONL; `correct` may be null or absent. Errors as in `read_problems`."""
    solutions = []
    for where, record in jsonl.read_rows(path):
        problem, text = (jsonl.field(record, where, key, str) for key in ("problem", "completion"))
        known = record.get("correct") is not None
        solutions.append(Solution(problem, text, jsonl.field(record, where, "correct", bool) if known else None))
    return tuple(solutions)


def write_solutions(path: Path | str, solutions: Iterable[Solution]) -> None:
    """Writes solutions as JSONL, atomically; `read_solutions` gives them back."""
    jsonl.write_records(path, solutions)

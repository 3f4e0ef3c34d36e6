"""A problem, a solution to one, and the JSONL files they are kept in."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rerankjax.problems import jsonl


@dataclass(frozen=True)
class Problem:
    """A programming problem in MultiPL-E's shape (nuprl/MultiPL-E, the fields its evaluation reads).

    name: unique in its file. language: MultiPL-E's short name, "py". prompt: the text to complete.
    tests: code after the completion that fails unless it is right. stop_tokens: a completion ends before the first.
    """

    name: str
    language: str
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]


@dataclass(frozen=True)
class Solution:
    """A completion of the problem named `problem`; `correct`: does it pass the tests, None if nobody knows."""

    problem: str
    completion: str
    correct: bool | None


def program(problem: Problem, completion: str) -> str:
    """The whole program that decides whether `completion` is right, put together as MultiPL-E does."""
    return f"{problem.prompt}{completion}\n{problem.tests}"


def read_problems(path: Path | str) -> tuple[Problem, ...]:
    """Reads problems from JSONL. Other fields (MultiPL-E's doctests, original, ...) are passed over.

    Raises ValueError that names file, row and field on a missing or ill-typed field or a name used twice.
    """
    problems: dict[str, Problem] = {}
    for where, record in jsonl.read_rows(path):
        name, language, prompt, tests = (
            jsonl.field(record, where, key, str) for key in ("name", "language", "prompt", "tests")
        )
        stop_tokens = jsonl.field(record, where, "stop_tokens", list)
        if not all(isinstance(token, str) and token for token in stop_tokens):
            raise ValueError(f"{where}: field 'stop_tokens' must hold non-empty strings, got {stop_tokens!r}.")
        if name in problems:
            raise ValueError(f"{where}: field 'name' repeats {name!r}; names must be unique, rename one.")
        problems[name] = Problem(name, language, prompt, tests, tuple(stop_tokens))
    return tuple(problems.values())


def write_problems(path: Path | str, problems: Iterable[Problem]) -> None:
    """Writes problems as JSONL, atomically; `read_problems` gives them back."""
    jsonl.write_records(path, problems)


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

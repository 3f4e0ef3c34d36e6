"""Rows of the benchmarks as problems: MultiPL-E, HumanEval, MBPP and CodeContests.

Each function takes a row and the place it is from ("file, row n"), and raises ValueError that names place and field of
what is not as it should be.
"""

import dataclasses
import json
from typing import Any

from rerankjax.problems.jsonl import field
from rerankjax.problems.problem import Case, Problem, core_fields, strings

# Of HumanEval's evaluation (Chen et al. 2021, arXiv 2107.03374).
PYTHON_STOP_TOKENS = ("\ndef", "\nclass", "\nif", "\n#", "\nprint")
# MBPP's task ids: 1-10 few-shot prompts, 11-510 test, 511-600 validation, then training (Austin et al. 2021, arXiv
# 2108.07732).
MBPP_FIRST_FREE_ID = 511  # below it is what tables of MBPP are of
MBPP_SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
# The number of a CodeContests problem's source (google-deepmind/code_contests, contest_problem.proto).
SOURCES = ("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU")
SOLUTION_LANGUAGES = {"cpp": 2, "py": 3, "java": 4}  # as its solutions have them; 1 is Python 2

Row = dict[str, Any]


def multipl_e(where: str, row: Row) -> Problem:
    """A problem of MultiPL-E, a translation of HumanEval or MBPP. C# tests are as shipped (see sandbox.multipl_e)."""
    return dataclasses.replace(core_fields(where, row), benchmark="MultiPL-E")


def humaneval(where: str, row: Row) -> Problem:
    """A problem of HumanEval, with its canonical solution; MultiPL-E's names for its fields will do too."""
    entry_point, solution, prompt = (
        field(row, where, name, str) for name in ("entry_point", "canonical_solution", "prompt")
    )
    return Problem(
        name=field(row, where, "name" if "name" in row and "task_id" not in row else "task_id", str),
        language="py",
        prompt=prompt,
        tests=f"{field(row, where, 'tests' if 'tests' in row and 'test' not in row else 'test', str)}\n"
        f"check({entry_point})\n",
        stop_tokens=PYTHON_STOP_TOKENS,
        solution=solution,
        benchmark="HumanEval",
    )


def mbpp(where: str, row: Row, *, split: str | None = None) -> Problem | None:
    """A problem of MBPP, full or sanitized: described in words, tested by assertions; up to task 510 a benchmark's.

    Its challenge tests are left out, as they are by those who report MBPP. None where it is not of `split`.
    """
    task_id = field(row, where, "task_id", int)
    if split is not None:
        if split not in MBPP_SPLITS:
            raise ValueError(f"{where}: MBPP has no split {split!r}; use one of {', '.join(MBPP_SPLITS)}.")
        if task_id not in MBPP_SPLITS[split]:
            return None
    sanitized = "test_imports" in row
    description, code = (field(row, where, name, str) for name in ("prompt" if sanitized else "text", "code"))
    setup = strings(row, where, "test_imports") if sanitized else (field(row, where, "test_setup_code", str),)
    tests = strings(row, where, "test_list")
    return Problem(
        name=f"MBPP/{task_id}",
        language="py",
        prompt=description.strip(),
        tests="\n".join(_lines(part) for part in (*setup, *tests) if part),
        stop_tokens=(),
        standalone=True,
        solution=_lines(code),
        benchmark="MBPP" if task_id < MBPP_FIRST_FREE_ID else None,
    )


def _lines(code: str) -> str:
    return code.replace("\r\n", "\n")


def code_contests(where: str, row: Row, *, language: str, split: str | None) -> Problem | None:
    """A problem of CodeContests in its own shape or SandboxFusion's, to be solved in `language`.

    Its cases are the public, then the private, then the generated ones; its solution is the first in `language`, where
    the row has "solutions" and one in it. Where `split` is not "train" it is of a benchmark. None for a problem whose
    programs read or write files, for nothing here can run those.
    """
    solution = None
    if "content" in row:
        name, description, cases = _sandbox_fusion(where, row)
    else:
        if any(row.get(name) for name in ("input_file", "output_file")):
            return None
        number = field(row, where, "source", int)
        if not 0 <= number < len(SOURCES):
            raise ValueError(f"{where}: field 'source' is {number}; it must be from 0 to {len(SOURCES) - 1}.")
        # Names of different sources may agree.
        name = f"{SOURCES[number]}/{field(row, where, 'name', str)}"
        description = field(row, where, "description", str)
        kinds = [f"{kind}_tests" for kind in ("public", "private", "generated")]
        cases = [case for kind in kinds for case in _cases(where, kind, field(row, where, kind, dict))]
        if "solutions" in row and language in SOLUTION_LANGUAGES:
            solution = _solution(where, field(row, where, "solutions", dict), SOLUTION_LANGUAGES[language])
    if not cases:
        raise ValueError(f"{where}: the row has no tests, so no program can be judged; remove that row.")
    benchmark = None if split == "train" else "CodeContests"
    return Problem(
        name,
        language,
        description,
        "",
        (),
        standalone=True,
        cases=tuple(cases),
        solution=solution,
        benchmark=benchmark,
    )


def _solution(where: str, solutions: Row, language: int) -> str | None:
    numbers, texts = (field(solutions, f"{where}, field 'solutions'", name, list) for name in ("language", "solution"))
    if len(numbers) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: field 'solutions' must have one string per language; correct that row.")
    return next((text for number, text in zip(numbers, texts, strict=True) if number == language), None)


def _cases(where: str, kind: str, tests: Row) -> list[Case]:
    given = [field(tests, f"{where}, field {kind!r}", name, list) for name in ("input", "output")]
    texts = [*given[0], *given[1]]
    if len(given[0]) != len(given[1]) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{where}: field {kind!r} must have as many input strings as output strings; correct that row."
        )
    return [Case(*texts) for texts in zip(*given, strict=True)]


def _sandbox_fusion(where: str, row: Row) -> tuple[str, str, list[Case]]:
    labels, tests = (_json(row, where, name, kind) for name, kind in (("labels", dict), ("test", list)))
    cases = []
    for number, test in enumerate(tests, start=1):
        place = f"{where}, field 'test', entry {number}"
        if not isinstance(test, dict):
            raise ValueError(f"{place}: must be an object with input and output, got {test!r}; correct that row.")
        given, expected = (field(test, place, name, dict) for name in ("input", "output"))
        cases.append(Case(field(given, place, "stdin", str), field(expected, place, "stdout", str)))
    source, name = (field(labels, f"{where}, field 'labels'", key, str) for key in ("source", "name"))
    return f"{source}/{name}", field(row, where, "content", str), cases


def _json(row: Row, where: str, name: str, kind: type) -> Any:
    try:
        value = json.loads(field(row, where, name, str))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: field {name!r} is not JSON ({error}); correct that row.") from error
    if type(value) is not kind:
        raise ValueError(f"{where}: field {name!r} must be a {kind.__name__} in JSON, got {value!r}; correct that row.")
    return value

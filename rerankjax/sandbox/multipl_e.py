"""MultiPL-E's files (nuprl/MultiPL-E, what its evaluation reads and writes): completions in, results out."""

import dataclasses
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerankjax.problems.jsonl import field, read_objects, texts
from rerankjax.problems.problem import LANGUAGE_ALIASES
from rerankjax.sandbox.verdict import Program, Result, Verdict

INPUTS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
RESULTS = (".results.json", ".results.json.gz")
AS_SHIPPED, REPAIRED = CSHARP_LISTS = ("as-shipped", "repaired")
_STATUSES = {
    Verdict.PASSED: "OK",
    Verdict.TIMEOUT: "Timeout",
    Verdict.COMPILE_ERROR: "SyntaxError",
    Verdict.UNSUPPORTED: "SyntaxError",
}


@dataclasses.dataclass(frozen=True)
class EvaluatedProblem:
    """A problem's programs and its results file: what the file holds already, or would hold before the first result.

    language: the sandbox's name for it. `results["results"]` has those of the first of `programs`, in their order.
    """

    where: str  # "file" or "file, row n"
    path: Path
    language: str
    programs: tuple[Program, ...]
    results: dict[str, Any]

    @property
    def statuses(self) -> list[str]:
        return [result["status"] for result in self.results["results"]]


def find_files(directory: Path, *, recursive: bool) -> list[Path]:
    """The files of problems in `directory`, sorted; results files are passed over. ValueError where there are none."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: not a directory.")
    paths = sorted(directory.glob("**/*" if recursive else "*"))
    files = [p for p in paths if p.name.endswith(INPUTS) and not p.name.endswith(RESULTS) and p.is_file()]
    if not files:
        more = "" if recursive else "; use --recursive to search its subdirectories too"
        raise ValueError(f"{directory}: no file ends in {', '.join(INPUTS)}{more}.")
    return files


def read_evaluated(file: Path, output: Path, csharp_lists: str) -> Iterator[EvaluatedProblem]:
    """Yields the problems of `file` that have completions, with the results that are in the directory `output`.

    Reads row by row. Raises ValueError that names file, row and field of what is not as it should be, or that results
    are there of other programs than these.
    """
    if not file.name.endswith(INPUTS):
        raise ValueError(f"{file}: its name must end in one of {', '.join(INPUTS)}.")
    by_row = file.name.endswith((".jsonl", ".jsonl.gz"))
    for where, problem in read_objects(file, by_row=by_row):
        if by_row:
            name = field(problem, where, "name", str).replace("/", "_")
            if not name:
                raise ValueError(f"{where}: field 'name' is empty; it names the results file.")
            path = output / f"{name}.results.json.gz"
        else:
            stem, _, gz = file.name.rpartition(".json")
            path = output / f"{stem}.results.json{gz}"
        if field(problem, where, "completions", list):
            yield _evaluated(where, problem, path, csharp_lists)


def _evaluated(where: str, problem: dict[str, Any], path: Path, csharp_lists: str) -> EvaluatedProblem:
    language, prompt, tests = (field(problem, where, name, str) for name in ("language", "prompt", "tests"))
    language = LANGUAGE_ALIASES.get(language, language)
    if language == "cs" and csharp_lists == REPAIRED:
        tests = repair_csharp_lists(tests)
    completions = texts(problem, where, "completions")
    programs = tuple(Program(language, f"{prompt}{completion}\n", tests) for completion in completions)
    results = {name: value for name, value in problem.items() if name != "completions"} | {"results": []}
    if path.exists():
        ((there, results),) = read_objects(path, by_row=False)
        _check_kept(there, results, programs, csharp_lists if language == "cs" else AS_SHIPPED)
    if language == "cs":
        results["csharp_lists"] = csharp_lists
    return EvaluatedProblem(where, path, language, programs, results)


def _check_kept(where: str, results: dict[str, Any], programs: tuple[Program, ...], csharp_lists: str) -> None:
    remedy = "choose another --output-dir, or remove that file to run all completions again"
    kept = field(results, where, "results", list)
    if len(kept) > len(programs):
        raise ValueError(f"{where}: has {len(kept)} results, more than the {len(programs)} completions; {remedy}.")
    had = results.get("csharp_lists", AS_SHIPPED)
    if kept and had != csharp_lists:
        raise ValueError(f"{where}: has results with C# lists {had}, but --csharp-lists is {csharp_lists}; {remedy}.")
    for number, (result, program) in enumerate(zip(kept, programs, strict=False), start=1):
        if not isinstance(result, dict):
            raise ValueError(f"{where}: field 'results' must contain only objects; number {number} is {result!r}.")
        field(result, f"{where}, result {number}", "status", str)
        if field(result, f"{where}, result {number}", "program", str) != program.source + program.tests:
            raise ValueError(f"{where}: result {number} is for a different program than completion {number}; {remedy}.")


def repair_csharp_lists(tests: str) -> str:
    """C# tests that compare lists by their entries; as shipped they compare references, which no new list equals.

    So DeepSeek-Coder's copy of MultiPL-E has it. Lists in lists and dictionaries stay as they are.
    """
    return tests.replace(".Equals((new List<", ".SequenceEqual((new List<")


def result_object(program: Program, result: Result, timestamp: int) -> dict[str, Any]:
    """An entry of "results", with the verdict, its control and the seconds that MultiPL-E's do not have.

    timestamp: Unix seconds.

    exit_code is negative for a signal, and -1 where the program was ended for its time, memory or output. A
    SANDBOX_ERROR is no result of the program and is refused with ValueError.
    """
    exit_code = result.exit_code
    if result.verdict is Verdict.TIMEOUT or exit_code is None:
        exit_code = -1 if result.verdict is Verdict.TIMEOUT or not result.signal else -result.signal
    return {
        "program": program.source + program.tests,
        "timestamp": timestamp,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "exit_code": exit_code,
        "status": status(program.language, result.verdict, result.stderr),
        "verdict": str(result.verdict),
        "control": str(result.control),
        "wall_seconds": result.wall_seconds,
        "cpu_seconds": result.cpu_seconds,
    }


def status(language: str, verdict: Verdict, stderr: str) -> str:
    """MultiPL-E's word for `verdict`. Raises ValueError for SANDBOX_ERROR, which says nothing about the program."""
    if verdict is Verdict.SANDBOX_ERROR:
        raise ValueError(f"status: {verdict} is not a result of the program: {stderr}")
    if verdict not in _STATUSES and language in ("js", "ts"):
        return next((name for name in ("AssertionError", "ReferenceError") if name in stderr), "Exception")
    return _STATUSES.get(verdict, "Exception")


def without_control(results: list[dict[str, Any]]) -> int:
    """How many of `results` are OK with nothing but the program's own word behind it."""
    return sum(result["status"] == "OK" and result.get("control", "none") == "none" for result in results)


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Replaces `path` atomically, making its directory; compressed where the name ends in .gz."""
    data = json.dumps(results, indent=2).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

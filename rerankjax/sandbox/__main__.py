"""Evaluate MultiPL-E's completions in the sandbox: the same input and output files as MultiPL-E's own evaluator.

    python -m rerankjax.sandbox --dir completions --output-dir results
    python -m rerankjax.sandbox --file samples.jsonl.gz --output-dir results --cpu-seconds 5

A file has one JSON object {"name", "language", "prompt", "tests", "completions": [...], ...} (.json, .json.gz), or one
object per row (.jsonl, .jsonl.gz). The results of NAME.json are written to OUTPUT_DIR/NAME.results.json, those of
NAME.json.gz to NAME.results.json.gz, those of a row to ROW_NAME.results.json.gz, with "_" for "/" in the name. Existing
results are kept and only missing ones are run, so the same command resumes.

Exit code: 0 all programs are evaluated, passed or not; 1 the sandbox itself failed on some programs, whose results are
left out; 2 bad input, or a missing tool; 130 interrupted.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rerankjax.progress import progress
from rerankjax.sandbox import Limits, Program, SandboxError, Verdict, multipl_e, run, toolchains
from rerankjax.sandbox.multipl_e import EvaluatedProblem

PROGRAM = "python -m rerankjax.sandbox"
SHOWN_FAILURES = 10
# results file -> the sandbox's name for the language, the statuses, and how many are OK without a control
Statuses = dict[Path, tuple[str, list[str], int]]


@dataclasses.dataclass
class Open:
    """A problem with programs in flight: how many, and the new results by number."""

    evaluated: EvaluatedProblem
    in_flight: int = 0
    new: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def results(self) -> list[dict[str, Any]]:
        """What there is from the first on without a gap."""
        kept = self.evaluated.results["results"]
        return kept + [self.new[n] for n in itertools.takewhile(self.new.__contains__, itertools.count(len(kept)))]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, see above; argparse itself leaves with SystemExit(2)."""
    args = _parse(argv)
    console = Console()
    try:
        files = [args.file] if args.file else multipl_e.find_files(args.dir, recursive=args.recursive)
        statuses, missing = _survey(args, files)
        args.output_dir.mkdir(parents=True, exist_ok=True)
        failures = _evaluate(args, missing, statuses, console) if missing else []
    except (ValueError, OSError, SandboxError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"{PROGRAM}: interrupted; the results so far are in {args.output_dir}; the same command resumes",
            file=sys.stderr,
        )
        return 130
    console.print(_table(statuses))
    for failure in failures[:SHOWN_FAILURES]:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
    if failures:
        note = "their results, and later results of the same problems, are left out; the same command tries again"
        print(f"{PROGRAM}: the sandbox failed on {len(failures)} programs: {note}", file=sys.stderr)
    return 1 if failures else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=Path, help="the file to evaluate")
    source.add_argument("--dir", type=Path, help="the directory with the files to evaluate")
    parser.add_argument("--recursive", action="store_true", help="with --dir: also search its subdirectories")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="directory of the results files; created if missing"
    )
    parser.add_argument(
        "--max-workers", type=_positive(int), metavar="N", help="programs at a time (default: one per core)"
    )
    parser.add_argument(
        "--cpu-seconds",
        type=_positive(float),
        metavar="S",
        default=Limits().cpu_seconds,
        help="CPU seconds per program, over all its processes (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-bytes",
        type=_positive(int),
        metavar="N",
        default=Limits().memory_bytes,
        help="bytes of memory per program, over all its processes (default: %(default)s)",
    )
    parser.add_argument(
        "--csharp-lists",
        choices=multipl_e.CSHARP_LISTS,
        default=multipl_e.AS_SHIPPED,
        help="how C# tests compare lists: by reference, as MultiPL-E ships the tests (no normal solution passes), or "
        "repaired, by their entries; the results record the choice (default: %(default)s)",
    )
    parser.add_argument(
        "--control",
        choices=("one", "every", "none"),
        default="one",
        help="if tests run in the program's own process, a pass counts only if the program fails when an expected "
        "value is made wrong: one value, or each in turn ('every', for final tables); the results record the control "
        "of each pass (default: %(default)s)",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="run JavaScript and TypeScript first in a node process that programs share; programs that do not fail "
        "there run in a process of their own",
    )
    parser.add_argument(
        "--uncontained",
        action="store_true",
        help="run trusted programs with your permissions and no containment, if the kernel refuses containment",
    )
    args = parser.parse_args(argv)
    if args.recursive and args.file:
        parser.error("--recursive needs --dir, not --file")
    return args


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if 0 < (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"must be a {'whole ' * (kind is int)}number above 0, got {text!r}")

    return parse


def _read(args: argparse.Namespace, file: Path) -> Iterator[EvaluatedProblem]:
    output = args.output_dir / file.relative_to(args.dir).parent if args.dir else args.output_dir
    return multipl_e.read_evaluated(file, output, args.csharp_lists)


def _survey(args: argparse.Namespace, files: list[Path]) -> tuple[Statuses, dict[Path, int]]:
    """The statuses there are, and how many are missing in which file. Nothing runs before all input is found good."""
    statuses: Statuses = {}
    sources: dict[Path, str] = {}
    missing: collections.Counter[Path] = collections.Counter()
    lacking = set()
    for file in files:
        for evaluated in _read(args, file):
            where, path = evaluated.where, evaluated.path
            if path in sources:
                raise ValueError(f"{where} and {sources[path]} both write their results to {path}; rename one of them.")
            sources[path] = where
            kept = evaluated.results["results"]
            statuses[path] = (evaluated.language, evaluated.statuses, multipl_e.without_control(kept))
            missing[file] += len(evaluated.programs) - len(evaluated.statuses)
            try:
                toolchains.check(evaluated.language)
            except ValueError as error:
                raise ValueError(f"{where}: field 'language': {error}") from None
            except SandboxError as error:
                lacking.add(str(error))
    if lacking:
        raise SandboxError("\n".join(sorted(lacking)))
    return statuses, +missing


def _evaluate(args: argparse.Namespace, missing: dict[Path, int], statuses: Statuses, console: Console) -> list[str]:
    """Run what is missing; returns what the sandbox failed under, and brings `statuses` up to date.

    A problem's results file is written when its last program has ended, or with what there is when all ends earlier.
    """
    problems: dict[Path, Open] = {}
    places: dict[int, tuple[Open, int]] = {}  # index in the stream -> the problem, and the number of its program
    failures = []

    def programs() -> Iterator[Program]:
        indices = itertools.count()
        for evaluated in itertools.chain.from_iterable(_read(args, file) for file in missing):
            first, end = len(evaluated.statuses), len(evaluated.programs)
            if first < end:
                problem = problems[evaluated.path] = Open(evaluated, end - first)
            for number in range(first, end):
                places[next(indices)] = problem, number
                yield evaluated.programs[number]

    def save(problem: Open) -> None:
        evaluated, results = problem.evaluated, problem.results()
        if len(results) > len(evaluated.statuses):
            multipl_e.write_results(evaluated.path, evaluated.results | {"results": results})
        ended = [result["status"] for result in results]
        statuses[evaluated.path] = evaluated.language, ended, multipl_e.without_control(results)
        del problems[evaluated.path]

    # By default a program that only waits may do so for four times its CPU time.
    wall_seconds = max(Limits().wall_seconds, 4 * args.cpu_seconds)
    limits = Limits(cpu_seconds=args.cpu_seconds, wall_seconds=wall_seconds, memory_bytes=args.memory_bytes)
    options = {"limits": limits, "control": args.control, "contained": not args.uncontained, "fast": args.fast}
    stream = run(programs(), workers=args.max_workers, **options)
    passed = 0
    try:
        with contextlib.closing(stream), progress("evaluate", sum(missing.values()), "programs", console) as advance:
            for count, result in enumerate(stream, start=1):
                problem, number = places.pop(result.index)
                problem.in_flight -= 1
                if result.verdict is Verdict.SANDBOX_ERROR:
                    failures.append(f"{problem.evaluated.where}, completion {number + 1}: {result.stderr}")
                else:
                    program = problem.evaluated.programs[number]
                    problem.new[number] = multipl_e.result_object(program, result, int(time.time()))
                passed += result.verdict is Verdict.PASSED
                if not problem.in_flight:
                    save(problem)
                advance(1, OK=passed / count)
    finally:
        for problem in list(problems.values()):
            save(problem)
    return failures


def _table(statuses: Statuses) -> Table:
    """A column a language, so that it fits 80 characters; pass@1 is the mean over problems of the share that is OK."""
    others = sorted({status for _, ended, _ in statuses.values() for status in ended} - {"OK"})
    table = Table("", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = [["problems", "programs", "OK", "OK without control", *others, "pass@1"]]
    for language in sorted({language for language, *_ in statuses.values()}):
        table.add_column(language, justify="right", no_wrap=True)
        problems = [ended for its, ended, _ in statuses.values() if its == language and ended]
        uncontrolled = sum(without for its, _, without in statuses.values() if its == language)
        counts = collections.Counter(itertools.chain.from_iterable(problems))
        figures = (len(problems), counts.total(), counts["OK"], uncontrolled, *(counts[status] for status in others))
        shares = [ended.count("OK") / len(ended) for ended in problems]
        columns.append([*map(str, figures), f"{sum(shares) / len(shares):.3f}" if shares else "-"])
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a batch system sends first ends it as Ctrl-C does
    sys.exit(main())

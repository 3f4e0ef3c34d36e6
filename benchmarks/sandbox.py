"""How fast the sandbox is, whether it gives the same verdicts as MultiPL-E, and whether it leaks resources.

    python benchmarks/sandbox.py speed       # compared with plain subprocesses, as in MultiPL-E's evaluator
    python benchmarks/sandbox.py control     # the cost of a control, per language
    python benchmarks/sandbox.py agreement   # three runs, and one with four busy processes per core
    python benchmarks/sandbox.py leaks       # 10,000 programs in a row

--data is JSONL(.gz) with one row per program: "language", "program" (prompt, completion and tests), "name", and
"evaluator_status", the status that MultiPL-E's evaluator gave. On two cores, speed takes 10 minutes, control takes 4,
and agreement and leaks take 20 each.
"""

import argparse
import collections
import contextlib
import gzip
import itertools
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from rerankjax import sandbox
from rerankjax.progress import progress
from rerankjax.sandbox import Program, Verdict, toolchains

# Speed relative to the evaluator's, with isolation.
TARGETS = {"py": 10, "php": 8, "sh": 2, "js": 0.9, "ts": 40, "cs": 2, "java": 6, "cpp": 5}
GEOMETRIC_MEAN_TARGET, PYTHON_PER_SECOND_TARGET = 5, 150
WARM_UP = 8  # programs per worker before timing starts, to warm up boxes and compilers
LEAK_SHARES = {"py": 6000, "php": 2000, "sh": 800, "js": 500, "ts": 300, "java": 200, "cs": 150, "cpp": 50}
POLL_SECONDS, STEP_SECONDS = 0.1, 15.0

Row = dict[str, Any]


def read(path: pathlib.Path, languages: list[str]) -> list[Row]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [row for row in map(json.loads, file) if row["language"] in languages]


def timed(rows: list[Row], language: str) -> list[Row]:
    """A language's programs, without those that time out: they would measure the time limit."""
    return [row for row in rows if row["language"] == language and row["evaluator_status"] != "Timeout"]


def evaluator_commands(language: str, file: str) -> list[list[str]]:
    """The commands that MultiPL-E's evaluator runs, one after the other."""
    binary, tsc = f"{file}.bin", str(pathlib.Path(toolchains.TYPESCRIPT).parent / "tsc.js")
    classpath = f"{file}.classes:{toolchains.JAVATUPLES}"
    return {
        "py": [[sys.executable, file]],
        "sh": [[toolchains.BASH, file]],
        "php": [[toolchains.PHP, file]],
        "cpp": [[toolchains.GXX, file, "-o", binary, "-std=c++17"], [binary]],
        "js": [[toolchains.NODE, file]],
        "ts": [[toolchains.NODE, tsc, "--target", "esnext", file], [toolchains.NODE, file.replace(".ts", ".js")]],
        "java": [
            [toolchains.JAVAC, "-encoding", "UTF8", "-d", f"{file}.classes", "-cp", toolchains.JAVATUPLES, file],
            [toolchains.JAVA, "-ea", "-cp", classpath, "Problem"],
        ],
        "cs": [
            [toolchains.MONO, toolchains.MCS, "/d:DEBUG", "-r:System.Numerics.dll", file, f"-out:{binary}"],
            [toolchains.MONO, binary],
        ],
    }[language]


def evaluate(language: str, text: str, directory: str) -> bool:
    """Runs a program as MultiPL-E's evaluator does: plain subprocesses, polled every 0.1 s."""
    with tempfile.NamedTemporaryFile("w", suffix=f".{language}", dir=directory) as file:
        file.write(text)
        file.flush()
        environment = {"PATH": "/usr/bin:/bin", "MONO_TRACE_LISTENER": "Console.Error"}
        for command in evaluator_commands(language, file.name):
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=directory,
                env=environment,
            ) as process:
                for _ in range(int(STEP_SECONDS / POLL_SECONDS)):
                    if process.poll() is not None:
                        break
                    time.sleep(POLL_SECONDS)
                process.kill()
            if process.returncode:
                return False
    return True


def evaluator_rate(language: str, rows: list[Row], workers: int) -> float:
    """Programs per second of the evaluator."""
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(workers) as executor:
        start = time.monotonic()
        list(executor.map(lambda row: evaluate(language, row["program"], directory), rows))
        return len(rows) / (time.monotonic() - start)


def sandbox_rate(
    language: str, rows: list[Row], workers: int, control: bool | str = True
) -> tuple[float, float, collections.Counter[str]]:
    """Programs per second once warm, the seconds before the first result, and the passes by their control."""
    start = time.monotonic()
    results = sandbox.run((Program(language, row["program"]) for row in rows), workers=workers, control=control)
    times, behind = [], collections.Counter[str]()
    for result in results:
        times.append(time.monotonic())
        behind[result.control] += result.verdict is Verdict.PASSED
    warm = min(WARM_UP * workers, len(rows) // 4)
    return (len(rows) - 1 - warm) / (times[-1] - times[warm]), times[0] - start, behind


def speed(rows: list[Row], languages: list[str], workers: int, rounds: int, console: Console) -> Row:
    figures = {}
    table = Table(
        "", "evaluator/s", "sandbox/s", "ratio", "target", "first result after", box=None, padding=(0, 2, 0, 0)
    )
    for language in languages:
        own = timed(rows, language)
        theirs, ours, first = [], [], []
        with progress(f"{language}", rounds, "rounds", console) as advance:
            for number in range(rounds):
                theirs.append(evaluator_rate(language, own[number::4], workers))
                rate, seconds, _ = sandbox_rate(language, random.Random(number).sample(own, len(own)), workers)
                ours.append(rate)
                first.append(seconds)
                advance(1, evaluator=theirs[-1], sandbox=ours[-1])
        ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
        values = {"evaluator": statistics.median(theirs), "sandbox": statistics.median(ours), "ratio": ratio}
        figures[language] = values | {"first_seconds": statistics.median(first), "target": TARGETS[language]}
        table.add_row(
            language,
            f"{values['evaluator']:.2f}",
            f"{values['sandbox']:.1f}",
            f"{ratio:.1f}",
            f"{TARGETS[language]}",
            f"{statistics.median(first):.2f} s",
        )
    mean = math.exp(statistics.mean(math.log(figures[language]["ratio"]) for language in languages))
    table.add_row("geometric mean", "", "", f"{mean:.1f}", f"{GEOMETRIC_MEAN_TARGET}", "")
    console.print(table)
    if "py" in languages:
        console.print(f"Python: {figures['py']['sandbox']:.0f} programs/s; target {PYTHON_PER_SECOND_TARGET}")
    return {"languages": figures, "geometric_mean": mean}


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def agreement(rows: list[Row], workers: int, console: Console) -> Row:
    runs: dict[str, list[str]] = {}
    cores = len(os.sched_getaffinity(0))
    for name, load in {"first": 0, "second": 0, "third": 0, f"{4 * cores} busy processes": 4 * cores}.items():
        order = random.Random(name).sample(range(len(rows)), len(rows))
        verdicts = [""] * len(rows)
        programs = (Program(rows[i]["language"], rows[i]["program"]) for i in order)
        with busy(load), progress(name, len(rows), "programs", console) as advance:
            for result in sandbox.run(programs, workers=workers):
                verdicts[order[result.index]] = str(result.verdict)
                advance(1)
        runs[name] = verdicts
    differ = [
        {"language": row["language"], "name": row["name"], "evaluator": row["evaluator_status"], "sandbox": verdicts[i]}
        for verdicts in runs.values()
        for i, row in enumerate(rows)
        if (verdicts[i] == Verdict.PASSED) != (row["evaluator_status"] == "OK")
    ]
    changing = [
        {"language": row["language"], "name": row["name"], **{name: verdicts[i] for name, verdicts in runs.items()}}
        for i, row in enumerate(rows)
        if len({verdicts[i] for verdicts in runs.values()}) > 1
    ]
    kinds = sorted(set(runs["first"]))
    heads = ("", "programs", *kinds, "pass rate", "evaluator's", "differ from the evaluator")
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    rates = {}
    for language in sorted({row["language"] for row in rows}):
        own = [i for i, row in enumerate(rows) if row["language"] == language]
        counts = collections.Counter(runs["first"][i] for i in own)
        wrong = len({row["name"] for row in differ if row["language"] == language})
        theirs = sum(rows[i]["evaluator_status"] == "OK" for i in own) / len(own)
        rates[language] = {"sandbox": counts[Verdict.PASSED] / len(own), "evaluator": theirs}
        shares = [f"{rate:.3f}" for rate in rates[language].values()]
        table.add_row(language, f"{len(own)}", *(f"{counts[v]}" for v in kinds), *shares, f"{wrong}")
    console.print(table)
    console.print(f"{len(rows)} programs, {len(runs)} runs: {len(differ)} verdicts differ from the evaluator's")
    console.print(f"{len(changing)} programs have different verdicts in different runs")
    for row in differ + changing:
        console.print(row)
    return {"runs": len(runs), "pass_rates": rates, "differ": differ, "changing": changing}


def state() -> dict[str, int]:
    """Resources of this process and of all processes that it started, which must not grow."""
    mine = {os.getpid()}
    parents = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    resident = 0
    for pid in mine:
        with contextlib.suppress(OSError):
            resident += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "processes": len(mine),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "own MiB": int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20,
        "all MiB": resident >> 20,
        "shared memory segments": len(pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()) - 1,
        "mounts": len(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()),
        "files in /tmp": len(os.listdir("/tmp")),
    }


def leaks(rows: list[Row], languages: list[str], workers: int, count: int, console: Console) -> Row:
    """Runs `count` programs, each distinct by a comment at its end, and records this process's resources meanwhile."""
    scale = count / sum(LEAK_SHARES[language] for language in languages)
    texts: list[Program] = []
    for language in languages:
        own = itertools.cycle(
            [r["program"] for r in rows if r["language"] == language and r["evaluator_status"] == "OK"]
        )
        mark = {"py": "#", "sh": "\n#"}.get(language, "//")
        texts += [Program(language, f"{next(own)}\n{mark} {i}") for i in range(round(LEAK_SHARES[language] * scale))]
    random.Random(0).shuffle(texts)
    sandbox.check()
    before, seen, passed = state(), [], 0
    with progress("leaks", len(texts), "programs", console) as advance:
        for done, result in enumerate(sandbox.run(texts, workers=workers), start=1):
            passed += result.verdict is Verdict.PASSED
            if done * 10 % len(texts) < 10:
                seen.append({"programs": done} | state())
            advance(1)
    after = state()
    table = Table(*seen[0], box=None, padding=(0, 2, 0, 0))
    for row in ({"programs": 0} | before, *seen, {"programs": len(texts)} | after):
        table.add_row(*map(str, row.values()))
    console.print(table)
    console.print(f"first row: before; last row: after all boxes were closed. {passed} of {len(texts)} programs passed")
    return {"before": before, "seen": seen, "after": after, "passed": passed, "programs": len(texts)}


def control(rows: list[Row], languages: list[str], workers: int, console: Console) -> Row:
    """The rate without a control, with one, and with one for each assertion; how many passes needed a control."""
    ways = {"none": False, "one": True, "every": "every"}
    figures = {}
    table = Table("programs/s", *ways, "passes", "judged apart", box=None, padding=(0, 2, 0, 0))
    for language in languages:
        own = timed(rows, language)
        rates = {}
        for name, way in ways.items():
            rates[name], _, behind = sandbox_rate(language, own, workers, way)
        figures[language] = rates | {"passes": behind.total(), "apart": behind["apart"]}
        table.add_row(language, *(f"{rate:.1f}" for rate in rates.values()), f"{behind.total()}", f"{behind['apart']}")
    console.print(table)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "control", "agreement", "leaks"])
    data = pathlib.Path(__file__).parents[2] / "shared" / "data" / "multipl_e" / "programs.jsonl.gz"
    parser.add_argument("--data", type=pathlib.Path, default=data)
    parser.add_argument("--languages", default=",".join(toolchains.WITH_TOOLCHAIN))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="speed: rounds, in which evaluator and sandbox alternate")
    parser.add_argument("--programs", type=int, default=10_000, help="leaks: number of programs")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    args = parser.parse_args()
    languages = args.languages.split(",")
    for language in languages:
        toolchains.check(language)
    if not args.data.is_file():
        parser.error(f"--data: {args.data} does not exist; see --help for its format")
    rows, console = read(args.data, languages), Console()
    if args.what == "speed":
        figures = speed(rows, languages, args.workers, args.rounds, console)
    elif args.what == "control":
        figures = control(rows, languages, args.workers, console)
    elif args.what == "agreement":
        figures = agreement(rows, args.workers, console)
    else:
        figures = leaks(rows, languages, args.workers, args.programs, console)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

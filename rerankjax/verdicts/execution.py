"""From candidates to verdicts: programs run in the sandbox while the next ones are sampled."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from rerankjax import sandbox
from rerankjax.candidates.candidate import Candidate
from rerankjax.problems.problem import Problem, source

ENGINES = ("local", "ray")


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """`workers` programs at a time, on this machine (engine "local") or over a Ray cluster ("ray")."""

    workers: int
    cpu_seconds: float
    wall_seconds: float
    engine: str = "local"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f'engine = "{self.engine}" is unknown: use one of {", ".join(ENGINES)}')
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers}: use 1 or more")


DETAIL_CHARACTERS = 1000  # of a failing run's last words: enough for the test that failed

VerdictCache = dict[tuple[str, str], Candidate]  # by problem and completion


def execute(
    config: SandboxConfig,
    problems: Sequence[Problem],
    candidates: Iterable[Candidate],
    advance: Callable[[int], object] = lambda programs: None,
    source: Callable[[Problem, str], str] = source,
    judged: VerdictCache | None = None,
    control: str = "one",
) -> list[Candidate]:
    """The candidates with their verdicts, in the order they came. They are drawn only as fast as programs finish.

    Of a problem with cases, one run a case until one is known to fail; the verdict is that of the first that does.
    `advance` is called once a candidate. source: the program without its tests, of a problem and a completion. judged:
    what was executed before, and is not again. control: see `sandbox.run`.

    A candidate under which the sandbox itself failed runs again at the end. If that fails too its verdict is
    SANDBOX_ERROR, which says nothing about the program: leave it out, and count it. CHEATED is what a control caught.
    """
    judged = judged or {}
    problem_of = {p.name: p for p in problems}
    taken: list[Candidate] = []
    results: dict[int, sandbox.Result] = {}  # by candidate: that of its first run to fail

    def programs(numbers: Iterable[int]) -> Iterator[tuple[int, sandbox.Program]]:
        for i in numbers:
            problem = problem_of[taken[i].problem]
            for program in programs_of(problem, source(problem, taken[i].completion)):
                if i in results and _order(results[i])[0] == 0:
                    break
                yield i, program

    def new() -> Iterator[int]:
        for i, candidate in enumerate(candidates):
            before = judged.get((candidate.problem, candidate.completion))
            if before is None:
                taken.append(candidate)
                yield i
            else:
                taken.append(dataclasses.replace(candidate, verdict=before.verdict, detail=before.detail))
                advance(1)

    for i, result in run_programs(config, programs(new()), control):
        if i not in results:
            advance(1)
        results[i] = min(results.get(i, result), result, key=_order)
    broken = [i for i, result in results.items() if result.verdict is sandbox.Verdict.SANDBOX_ERROR]
    for i in broken:
        del results[i]
    for i, result in run_programs(config, programs(broken), control):
        results[i] = min(results.get(i, result), result, key=_order)
    return [c if c.verdict else _with_verdict(c, results[i]) for i, c in enumerate(taken)]


def run_programs(
    config: SandboxConfig, programs: Iterator[tuple[int, sandbox.Program]], control: str
) -> Iterator[tuple[int, sandbox.Result]]:
    """The result of each program, with the number that came with it."""
    if config.engine == "ray":
        from rerankjax.sandbox.cluster import run  # needs Ray
    else:
        from rerankjax.sandbox import run
    numbers: list[int] = []

    def numbered() -> Iterator[sandbox.Program]:
        for i, program in programs:
            numbers.append(i)
            yield program

    limits = sandbox.Limits(cpu_seconds=config.cpu_seconds, wall_seconds=config.wall_seconds)
    for result in run(numbered(), workers=config.workers, limits=limits, control=control):
        yield numbers[result.index], result


def _order(result: sandbox.Result) -> tuple[int, int]:
    """What counts first of a candidate's runs: one that failed, then one without a verdict."""
    others = {sandbox.Verdict.SANDBOX_ERROR: 1, sandbox.Verdict.PASSED: 2}
    return others.get(result.verdict, 0), result.index


def verdict_cache(candidates: Iterable[Candidate]) -> VerdictCache:
    """The verdicts of executed candidates, but those in which the sandbox itself failed."""
    return {(c.problem, c.completion): c for c in candidates if c.verdict != sandbox.Verdict.SANDBOX_ERROR}


def programs_of(problem: Problem, text: str) -> Iterator[sandbox.Program]:
    """What must pass for the program `text` to be right: it with the problem's tests, or one run a case."""
    for case in problem.cases:
        yield sandbox.Program(problem.language, text, stdin=case.stdin, expected_output=case.expected_output)
    if not problem.cases:
        yield sandbox.Program(problem.language, text, "\n" + problem.tests)


def _with_verdict(candidate: Candidate, result: sandbox.Result) -> Candidate:
    failed = result.verdict is not sandbox.Verdict.PASSED
    detail = result.stderr[-DETAIL_CHARACTERS:] if failed else ""
    return dataclasses.replace(candidate, verdict=str(result.verdict), detail=detail)

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
) -> list[Candidate]:
    """The candidates with their verdicts, in the order they came. They are drawn only as fast as programs finish.

    Of a problem with cases, one run a case until one is known to fail; the verdict is that of the first that does.
    `advance` is called once a candidate. source: the program without its tests, of a problem and a completion. judged:
    what was executed before, and is not again.
    """
    judged = judged or {}
    problem_of = {p.name: p for p in problems}
    taken: list[Candidate] = []
    candidate_of: list[int] = []  # by run
    failures: dict[int, sandbox.Result] = {}
    passes: dict[int, sandbox.Result] = {}

    def programs() -> Iterator[sandbox.Program]:
        for i, candidate in enumerate(candidates):
            before = judged.get((candidate.problem, candidate.completion))
            if before is not None:
                taken.append(dataclasses.replace(candidate, verdict=before.verdict, detail=before.detail))
                advance(1)
                continue
            taken.append(candidate)
            problem = problem_of[candidate.problem]
            for program in programs_of(problem, source(problem, candidate.completion)):
                if i in failures:
                    break
                candidate_of.append(i)
                yield program

    limits = sandbox.Limits(cpu_seconds=config.cpu_seconds, wall_seconds=config.wall_seconds)
    if config.engine == "ray":
        from rerankjax.sandbox.cluster import run  # needs Ray
    else:
        from rerankjax.sandbox import run
    for result in run(programs(), workers=config.workers, limits=limits):
        i = candidate_of[result.index]
        if i not in passes and i not in failures:
            advance(1)
        if result.verdict is sandbox.Verdict.PASSED:
            passes[i] = result
        elif i not in failures or result.index < failures[i].index:
            failures[i] = result
    return [c if c.verdict else _with_verdict(c, failures.get(i) or passes[i]) for i, c in enumerate(taken)]


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

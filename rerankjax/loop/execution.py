"""From candidates to verdicts: programs run in the sandbox while the next ones are sampled."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from rerankjax import sandbox
from rerankjax.candidates.candidate import Candidate
from rerankjax.loop.experiment import SandboxConfig
from rerankjax.problems.problem import Problem

DETAIL_CHARACTERS = 1000  # of a failing run's last words: enough for the test that failed


def execute(
    config: SandboxConfig,
    problems: Sequence[Problem],
    candidates: Iterable[Candidate],
    advance: Callable[[int], object] = lambda programs: None,
) -> list[Candidate]:
    """The candidates with their verdicts, in the order they came. They are drawn only as fast as programs finish."""
    problem_of = {p.name: p for p in problems}
    taken: list[Candidate] = []

    def programs() -> Iterator[sandbox.Program]:
        for candidate in candidates:
            taken.append(candidate)
            problem = problem_of[candidate.problem]
            source = problem.prompt + candidate.completion
            yield sandbox.Program(problem.language, source, "\n" + problem.tests)

    limits = sandbox.Limits(cpu_seconds=config.cpu_seconds, wall_seconds=config.wall_seconds)
    results: dict[int, sandbox.Result] = {}
    for result in sandbox.run(programs(), workers=config.workers, limits=limits):
        results[result.index] = result
        advance(1)
    return [_with_verdict(candidate, results[i]) for i, candidate in enumerate(taken)]


def _with_verdict(candidate: Candidate, result: sandbox.Result) -> Candidate:
    failed = result.verdict is not sandbox.Verdict.PASSED
    detail = result.stderr[-DETAIL_CHARACTERS:] if failed else ""
    return dataclasses.replace(candidate, verdict=str(result.verdict), detail=detail)

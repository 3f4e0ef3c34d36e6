"""Candidates to verdicts: what the sandbox could not judge is tried again, kept apart, and never called a failure."""

import pytest

from rerankjax import sandbox
from rerankjax.candidates.candidate import Candidate
from rerankjax.problems.problem import Case, Problem
from rerankjax.sandbox import Verdict, box, pool, python
from rerankjax.verdicts.execution import SandboxConfig, execute, verdict_cache

CONFIG = SandboxConfig(2, 5.0, 20.0)
PROBLEM = Problem("one", "py", "def one():\n", "assert one() == 1\n", ())
CASES = Problem("twice", "py", "", "", (), standalone=True, cases=tuple(Case(f"{i}\n", f"{2 * i}\n") for i in range(3)))


def candidates(problem: Problem, *texts: str) -> list[Candidate]:
    return [Candidate(problem.name, i, text, 0.0, 1, True) for i, text in enumerate(texts)]


def test_what_the_sandbox_could_not_judge_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}

    def dies(boxes, program, *, control):
        calls[program.source] = calls.get(program.source, 0) + 1
        recovers = "recovers" in program.source and calls[program.source] > pool.ATTEMPTS
        if "dies" in program.source and not recovers:
            raise box.BoxDiedError("gone")
        return python.judge(boxes, program, control=control)

    monkeypatch.setitem(pool.JUDGES, "py", dies)
    texts = ["    return 1", "    return 1  # dies", "    return 1  # dies, recovers", "    return 2"]
    done: list[int] = []
    executed = execute(CONFIG, [PROBLEM], candidates(PROBLEM, *texts), done.append)
    assert [c.verdict for c in executed] == ["passed", "sandbox error", "passed", "failed"]
    assert "gone" in executed[1].detail
    assert sum(done) == len(texts)
    assert sorted(calls.values()) == [1, 1, pool.ATTEMPTS + 1, 2 * pool.ATTEMPTS]
    assert sorted(completion for _, completion in verdict_cache(executed)) == sorted([texts[0], *texts[2:]])


def test_a_case_that_fails_counts_before_one_that_nobody_could_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(boxes, program, *, control):
        if program.stdin == "0\n":
            raise box.BoxDiedError("gone")
        return python.judge(boxes, program, control=control)

    monkeypatch.setitem(pool.JUDGES, "py", dies)
    texts = ["print(2 * int(input()))", "print(0)"]
    executed = execute(CONFIG, [CASES], candidates(CASES, *texts))
    assert [c.verdict for c in executed] == ["sandbox error", "failed"]


def test_a_fault_of_ours_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(boxes, program, *, control):
        if "fault" in program.source:
            raise ZeroDivisionError("ours")
        return python.judge(boxes, program, control=control)

    monkeypatch.setitem(pool.JUDGES, "py", fails)
    given = [sandbox.Program("py", f"x = {i}  # {'fault' * (i == 3)}") for i in range(6)]
    results = sorted(sandbox.run(given, workers=2), key=lambda result: result.index)
    assert [r.index for r in results if r.verdict is Verdict.SANDBOX_ERROR] == [3]
    assert "ZeroDivisionError: ours" in results[3].stderr
    assert sum(r.verdict is Verdict.PASSED for r in results) == 5


def test_what_a_control_caught_can_be_counted() -> None:
    cheats = """    class A(int):
        __eq__ = lambda self, other: True
    return A()"""
    texts = ["    return 1", "    return 2", cheats]
    executed = execute(CONFIG, [PROBLEM], candidates(PROBLEM, *texts), control="every")
    assert [c.verdict for c in executed] == ["passed", "failed", Verdict.CHEATED]
    executed = execute(CONFIG, [PROBLEM], candidates(PROBLEM, *texts))
    assert [c.verdict for c in executed] == ["passed", "failed", "failed"]


def test_replies_that_are_not_as_agreed_are_refused() -> None:
    good = {"killed": "", "said": "", "stdout": "", "stderr": "", "wall_seconds": 0.1, "cpu_seconds": 0.1}
    good |= {"spent": False, "metered_seconds": 0.0, "exit_code": 0, "signal": None}
    box._check_reply(good)
    for name, value in {"killed": "yes", "said": None, "exit_code": "0", "cpu_seconds": "1", "spent": 1}.items():
        with pytest.raises(ValueError, match="reply"):
            box._check_reply(good | {name: value})
    with pytest.raises(ValueError, match="reply"):
        box._check_reply({})

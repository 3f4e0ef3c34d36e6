"""Python: tests in one box, the program in another, values between them; what the answers mean."""

import contextlib
from typing import Any

from rerankjax.sandbox.box import Box, BoxDiedError
from rerankjax.sandbox.conversation import holding, pipe
from rerankjax.sandbox.languages import Boxes, unmasked, with_controls
from rerankjax.sandbox.output import matches
from rerankjax.sandbox.python_tests import split, wrong_tests
from rerankjax.sandbox.task import Judged
from rerankjax.sandbox.verdict import Control, Program, Verdict

_SAID = {verdict.value: verdict for verdict in (Verdict.FAILED, Verdict.COMPILE_ERROR, Verdict.MEMORY_LIMIT)}


def judge(boxes: Boxes, program: Program, *, control: Control) -> Judged:
    """The verdict on a Python program and the box's reply it rests on. Raises BoxDiedError."""
    if program.expected_output is not None:
        return _by_output(boxes("programs"), program)
    parts = split(program.source, program.tests)
    source, tests = parts or (program.source, program.tests)

    def attempt(tests: str) -> Judged:
        box = boxes("programs")
        reply = box.ask({"source": source, "tests": tests, "keep_output": False})
        return _verdict(reply, box.limits.cpu_seconds), reply

    judged = _apart(boxes("programs"), boxes("tests"), source, tests) if parts is not None else None
    if judged is not None:
        return unmasked(judged, control, lambda: attempt(tests)[0])
    # Tests that give the program more than values, or none that anyone finds.
    whole = program.source + program.tests
    return with_controls(attempt(tests), whole, wrong_tests(tests), control, lambda wrong: attempt(wrong)[0])


def _by_output(box: Box, program: Program) -> Judged:
    body = {"source": program.source, "tests": "", "keep_output": True}
    reply = box.ask(body, stdin=program.stdin)
    verdict = _verdict(reply, box.limits.cpu_seconds)
    if reply["exit_code"] == 0 and verdict in (Verdict.PASSED, Verdict.FAILED):
        right = matches(reply["stdout"], program.expected_output or "")
        return (Verdict.PASSED if right else Verdict.FAILED), reply | {"control": Control.APART}
    return verdict, reply


def _apart(solver: Box, examiner: Box, source: str, tests: str) -> Judged | None:
    """Run the tests in the one box and the program in the other. None where these tests need both in one process."""
    try:
        with contextlib.ExitStack() as open_ends:
            asked, ask = pipe(open_ends)
            answered, answer = pipe(open_ends)
            solver.send({"source": source, "keep_output": False}, (holding("", open_ends), answer, asked))
            examiner.send({"tests": tests, "keep_output": False}, (holding("", open_ends), ask, answered))
        examiner_reply, reply = examiner.reply(), solver.reply()
    except BoxDiedError:
        solver.close()  # what one of them still has to say would be taken for its next answer
        examiner.close()
        raise
    outcome = examiner_reply["said"]
    if outcome == "inseparable":
        return None
    verdict = _verdict(reply, solver.limits.cpu_seconds)
    if verdict in (Verdict.TIMEOUT, Verdict.OUTPUT_LIMIT) or reply["killed"]:
        return verdict, reply
    if examiner_reply["killed"]:
        return Verdict(examiner_reply["killed"]), reply
    stderr = (reply["stderr"] + examiner_reply["stderr"])[-len(reply["stderr"]) - 4096 :]
    if outcome in ("passed", "believed"):
        return Verdict.PASSED, reply | {"exit_code": 0, "signal": None, "believed": outcome == "believed"}
    if outcome in _SAID or outcome == "runtime error":
        return _SAID.get(outcome, Verdict.RUNTIME_ERROR), reply | {"exit_code": 1, "signal": None, "stderr": stderr}
    # It ended before its tests did. Then an exit code of 0 claims a pass that no test bears out.
    return verdict, reply


def _verdict(reply: dict[str, Any], cpu_seconds: float) -> Verdict:
    if reply["killed"]:
        return Verdict(reply["killed"])
    if reply["cpu_seconds"] > cpu_seconds:
        return Verdict.TIMEOUT
    outcome = reply["said"]
    if outcome == "passed" and reply["exit_code"] == 0:
        return Verdict.PASSED
    if outcome in _SAID:
        return _SAID[outcome]
    return Verdict.FAILED if reply["exit_code"] == 0 else Verdict.RUNTIME_ERROR

"""One run of a program that is not Python's: what it has to show, and what its end means."""

import contextlib
import dataclasses
import json
import re
from typing import Any

from rerankjax.sandbox import values
from rerankjax.sandbox.assertions import Expected
from rerankjax.sandbox.box import Box
from rerankjax.sandbox.output import matches
from rerankjax.sandbox.verdict import Verdict

Judged = tuple[Verdict, dict[str, Any]]

SHOWN_BYTES = 200
# What is longer than this, and this much for each letter of the assertion, is not read: no equal value is.
TOLD_BYTES, TOLD_PER_LETTER = 4096, 64
# What a program's last words say of an end that its exit code does not tell. The first that is found counts.
_SIGNS: dict[str, list[tuple[Verdict, str]]] = {
    "sh": [
        (Verdict.COMPILE_ERROR, r"syntax error"),
        (Verdict.MEMORY_LIMIT, r"cannot allocate|out of memory|memory exhausted"),
    ],
    "php": [
        (Verdict.COMPILE_ERROR, r"Parse error"),
        (Verdict.FAILED, r"Test failed!"),
        (Verdict.MEMORY_LIMIT, r"Allowed memory size|Out of memory"),
    ],
    "cpp": [(Verdict.FAILED, r"Assertion .*failed"), (Verdict.MEMORY_LIMIT, r"std::bad_alloc")],
    "js": [
        (Verdict.FAILED, r"AssertionError"),
        (Verdict.COMPILE_ERROR, r"SyntaxError"),
        (Verdict.MEMORY_LIMIT, r"heap out of memory"),
    ],
    "java": [(Verdict.FAILED, r"java\.lang\.AssertionError"), (Verdict.MEMORY_LIMIT, r"OutOfMemoryError")],
    "cs": [
        (Verdict.RUNTIME_ERROR, r"Unhandled Exception"),
        (Verdict.FAILED, r"DefaultTraceListener\.Fail"),
        (Verdict.MEMORY_LIMIT, r"OutOfMemoryException"),
    ],
}
_SIGNS["ts"] = _SIGNS["js"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A text to run, and how its end is known.

    expected: what it has to tell, in this order; None where its tests decide by themselves, or its output does.
    together: its tests are not to be taken apart from it.
    """

    text: str
    expected: tuple[Expected, ...] | None = None
    expected_output: str | None = None
    stdin: str = ""
    together: bool = False

    @property
    def own_word(self) -> bool:
        """Whether its harness has to say the word that means that the last line has run."""
        return self.expected is None and self.expected_output is None


def run(box: Box, language: str, task: Task, body: dict[str, Any], word: str) -> Judged:
    """Have `box` run what `body` says, and judge its end. Raises BoxDiedError."""
    by_output = task.expected_output is not None
    hearing = _Hearing(language, task, word.encode())
    reply = box.ask(
        body | {"keep_output": by_output},
        stdin=task.stdin,
        word=word.encode() + b"\0" if task.own_word else b"",
        listen=None if by_output else hearing.listen,
    )
    killed = reply["killed"]
    if "steps" in body:
        records = _records(reply["said"])
        compiled = len(body["steps"]) == 1 or records.get("compile", {}).get("exit_code") == 0
        if not compiled or reply["said"].startswith("?"):  # not compiled, or its files could not be written
            reply |= records.get("compile", {})
            message = reply["said"] if reply["said"].startswith("?") else ""
            return Verdict(killed or Verdict.COMPILE_ERROR), reply | {"stderr": reply["stderr"] + message}
        if not killed:
            reply |= records.get("run", {"exit_code": None})
            # The step's usage leaves out children that no process waited for.
            reply["cpu_seconds"] = max(reply["cpu_seconds"], reply["metered_seconds"])
    if hearing.wrong:
        ended = {"exit_code": 1, "signal": None} if killed else {}
        outcome = Verdict.MEMORY_LIMIT if _sign(language, reply) is Verdict.MEMORY_LIMIT else Verdict.FAILED
        return outcome, reply | ended | {"stderr": reply["stderr"] + hearing.wrong}
    if killed:
        return Verdict(killed), reply
    passed = matches(reply["stdout"], task.expected_output or "") if by_output else hearing.complete
    return verdict(language, reply, passed, box.limits.cpu_seconds), reply


def first_wrong(language: str, task: Task, frames: list[Any]) -> str:
    """What the first of `frames` that is not as expected is about; "" where none is."""
    hearing = _Hearing(language, task, b"")
    for frame in frames:
        if not hearing.listen(str(frame).encode(errors="replace")):
            break
    return hearing.wrong


def verdict(language: str, reply: dict[str, Any], passed: bool, cpu_seconds: float) -> Verdict:
    """`passed` holds only with exit code 0, and within the limit."""
    if reply["cpu_seconds"] > cpu_seconds:
        return Verdict.TIMEOUT
    sign = _sign(language, reply)
    # As MultiPL-E, which looks at what C# says and not at its exit code.
    if language == "cs" and not reply["signal"] and (passed or not reply["exit_code"]):
        return sign or (Verdict.PASSED if passed else Verdict.FAILED)
    if reply["exit_code"] == 0:
        return Verdict.PASSED if passed else Verdict.FAILED
    # Under `set -e` a test that fails ends Bash without a word.
    return sign or (Verdict.FAILED if language == "sh" and reply["exit_code"] == 1 else Verdict.RUNTIME_ERROR)


def _sign(language: str, reply: dict[str, Any]) -> Verdict | None:
    words = reply["stderr"] + (reply["stdout"] if language == "php" else "")
    return next((verdict for verdict, sign in _SIGNS[language] if re.search(sign, words)), None)


class _Hearing:
    """Compares what a program tells with what is expected, and hangs up at the first difference."""

    def __init__(self, language: str, task: Task, word: bytes) -> None:
        self._language, self._task, self._word = language, task, word
        self._wanted = (None,) if task.own_word else task.expected or ()
        self._right = 0
        self.wrong = ""

    def listen(self, frame: bytes) -> bool:
        """Whether the program may continue."""
        index = self._right
        expected = self._wanted[index] if index < len(self._wanted) else None
        if index < len(self._wanted) and (frame == self._word if expected is None else self._equal(expected, frame)):
            self._right += 1
            return True
        shown = expected.text.strip() if expected else "no further value"
        self.wrong = f"test {index + 1}: {shown}\nthe program gave {frame[:SHOWN_BYTES].decode(errors='replace')}\n"
        return False

    def _equal(self, expected: Expected, frame: bytes) -> bool:
        if len(frame) > TOLD_BYTES + TOLD_PER_LETTER * len(expected.text):
            return False
        actual = ("text", frame) if self._language == "sh" else values.told(frame)
        try:
            return values.equal(self._language, expected.operator, expected.value, actual)
        except (ArithmeticError, RecursionError):  # of numbers that no honest program has
            return False

    @property
    def complete(self) -> bool:
        return not self.wrong and self._right == len(self._wanted)


def _records(message: str) -> dict[str, dict[str, Any]]:
    """How each step ended, by its name: what is whole of what process 1 of the program's namespace wrote."""
    records = {}
    for line in message.split("\n"):
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            record = json.loads(line)
            ended = {name: record[name] for name in ("exit_code", "signal", "cpu_seconds")}
            ended["cpu_seconds"] = float(ended["cpu_seconds"])
            if all(isinstance(ended[name], int | None) for name in ("exit_code", "signal")):
                records[str(record["stage"])] = ended
    return records

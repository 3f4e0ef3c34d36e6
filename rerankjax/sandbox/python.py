"""Python: what the box is asked for a program, and what its answer means."""

import ast
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable
from typing import Any

from rerankjax.sandbox.box import Box
from rerankjax.sandbox.control import CAUGHT
from rerankjax.sandbox.output import matches
from rerankjax.sandbox.verdict import Program, Verdict

_PARSING = threading.Lock()


def judge(boxes: Callable[[str], Box], program: Program, *, control: bool) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on a Python program and the box's reply it rests on. Raises BoxDiedError."""
    box = boxes("programs")
    by_output = program.expected_output is not None
    body: dict[str, Any] = {"source": program.source, "tests": program.tests, "stdin": program.stdin, "quiet": False}
    body["keep_output"] = by_output
    reply = box.ask(body)
    verdict = _verdict(reply, box.limits.cpu_seconds)
    if by_output and reply["exit_code"] == 0 and verdict in (Verdict.PASSED, Verdict.FAILED):
        right = matches(reply["stdout"], program.expected_output or "")
        return (Verdict.PASSED if right else Verdict.FAILED), reply
    if verdict is Verdict.PASSED and control:
        wrong = box.ask({**body, "tests": _wrong_tests(program), "quiet": True})
        if _verdict(wrong, box.limits.cpu_seconds) is Verdict.PASSED:
            return Verdict.FAILED, {**reply, "stderr": CAUGHT}
    return verdict, reply


def _verdict(reply: dict[str, Any], cpu_seconds: float) -> Verdict:
    if reply["killed"]:
        return Verdict(reply["killed"])
    if reply["cpu_seconds"] > cpu_seconds:
        return Verdict.TIMEOUT
    said = reply["said"]
    if said == "passed" and reply["exit_code"] == 0:
        return Verdict.PASSED
    if said in ("failed", "compile error", "memory limit"):
        return Verdict(said)
    # Ended by itself or by a signal: an exit code of 0 claims a pass that no test bears out.
    return Verdict.FAILED if reply["exit_code"] == 0 else Verdict.RUNTIME_ERROR


def _wrong_tests(program: Program) -> str:
    """`program.tests` with one assertion, which no honest program can pass, in the place of all that are sure to run.

    Which one is made wrong depends on the program, and the program runs in a process of its own that looks like the
    first: to tell the two apart it would have to know the right answers. Where no assertion is sure to run, one is
    added.
    """
    assertions = _assertions(program.tests)
    if not assertions:
        return program.tests + "\nassert False\n"
    digest = hashlib.sha256(program.source.encode(errors="replace") + program.tests.encode(errors="replace")).digest()
    chosen = assertions[int.from_bytes(digest[:8], "big") % len(assertions)]
    tests = program.tests.encode()
    for start, end, wrong in sorted(assertions, reverse=True):
        tests = tests[:start] + (wrong if (start, end, wrong) == chosen else "pass").encode() + tests[end:]
    return tests.decode()


def _parse(tests: str) -> ast.Module:
    """ast.parse, which CPython 3.11 lets fail at random while another thread parses (python/cpython#106905)."""
    with _PARSING:
        for _ in range(10):
            with contextlib.suppress(SystemError):
                return ast.parse(tests)
        return ast.parse(tests)


@functools.lru_cache(maxsize=256)
def _assertions(tests: str) -> list[tuple[int, int, str]]:
    """(start, end, made wrong), in bytes of UTF-8, of each assertion that runs whenever all tests pass."""
    try:
        tree = _parse(tests)
        starts = [0]
        for line in tests.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    text = tests.encode()

    def span(node: ast.stmt | ast.expr) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[(node.end_lineno or 0) - 1] + (
            node.end_col_offset or 0
        )

    called = {
        node.value.func.id
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    }
    bodies = [tree.body] + [
        node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in called
    ]
    assertions = []
    for node in (node for body in bodies for node in body):
        place = _expected(node.test) if isinstance(node, ast.Assert) else None
        if place is not None:
            (start, end), (first, last) = span(node), span(place[0])
            assertions.append((start, end, (text[start:first] + place[1].encode() + text[last:end]).decode()))
    return assertions


def _expected(test: ast.expr) -> tuple[ast.expr, str] | None:
    """The part of an assertion to replace, and a value that a right answer is not equal to."""
    if not isinstance(test, ast.Compare) or len(test.ops) > 1:
        return None
    left, right = test.left, test.comparators[0]
    if isinstance(test.ops[0], ast.Eq) and any(isinstance(node, ast.Call) for node in ast.walk(left)):
        try:
            return right, f"({_other(ast.literal_eval(right))!r})"
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return right, "object()"
    match test.ops[0], left:
        case ast.Lt() | ast.LtE(), ast.Call(func=ast.Name("abs" | "fabs") | ast.Attribute(attr="fabs")):
            return right, "-1"
    return None


def _other(value: Any) -> Any:
    """A value of the same type, where there is one, that is not equal to `value`."""
    match value:
        case bool():
            return not value
        case int() | float() | complex():
            return value + 1 if value + 1 != value else -value
        case str():
            return value + "x"
        case bytes():
            return value + b"x"
        case list():
            return [*value, 0]
        case tuple():
            return (*value, 0)
        case dict():
            return {**value, "x": 0} if "x" not in value else {}
        case set():
            return value ^ {0}
        case _:  # None, Ellipsis
            return 0

"""Python's tests: where they begin in a program that came whole, and how what they expect is made wrong."""

import ast
import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

PARSED_LETTERS = 1 << 20  # of a program that came whole: while Python parses no other thread runs
_PARSING = threading.Lock()


def split(source: str, tests: str) -> tuple[str, str] | None:
    """The program and its tests; a program that came whole ends in `def check(...)` and calls, or in assertions."""
    if tests:
        return source, tests
    if len(source) > PARSED_LETTERS:
        return None
    begins = [match.start() for match in re.finditer(r"^def check\(\w+\):", source, re.MULTILINE)]
    try:
        for start in begins[-1:]:
            if all(_is_test(node) for node in _parse(source[start:]).body[1:]):
                return source[:start], source[start:]
        body = _parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    first = len(body)
    while first and isinstance(body[first - 1], ast.Assert):
        first -= 1
    if not 0 < first < len(body):
        return None
    lines = source.splitlines(keepends=True)
    start = body[first].lineno - 1
    before = body[first - 1].end_lineno
    return ("".join(lines[:start]), "".join(lines[start:])) if before and before <= start else None


def _is_test(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test")


def wrong_tests(tests: str) -> Iterator[str]:
    """`tests`, each time with what one assertion expects made wrong and all else the same.

    Only of assertions that run whenever all tests pass.
    """
    text = tests.encode()
    for start, end, wrong in _expected_places(tests):
        yield (text[:start] + wrong.encode() + text[end:]).decode()


def _parse(tests: str) -> ast.Module:
    """ast.parse, which CPython 3.11 lets fail at random while another thread parses (python/cpython#106905)."""
    with _PARSING:
        for _ in range(10):
            with contextlib.suppress(SystemError):
                return ast.parse(tests)
        return ast.parse(tests)


@functools.lru_cache(maxsize=256)
def _expected_places(tests: str) -> list[tuple[int, int, str]]:
    """(start, end, made wrong), in bytes of UTF-8, of what the assertions expect."""
    try:
        tree = _parse(tests)
        starts = [0]
        for line in tests.encode().splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    called = {
        node.value.func.id
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    }
    bodies = [tree.body] + [
        node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in called
    ]
    places = []
    for node in (node for body in bodies for node in body):
        place = _expected(node.test) if isinstance(node, ast.Assert) else None
        if place is not None:
            part, wrong = place
            start = starts[part.lineno - 1] + part.col_offset
            places.append((start, starts[(part.end_lineno or 0) - 1] + (part.end_col_offset or 0), wrong))
    return places


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

"""The negative control: tests of which one is made wrong, so that no honest program can pass them.

The tests that MultiPL-E translates hold an assertion a line. The wrong one asks of one call what the tests expect of
another call, so that nothing need be known of the language's values. Python has its own (python.py).
"""

import hashlib
import re
from collections.abc import Iterator

CAUGHT = "sandbox: the program passes even when a test is made wrong, so its pass proves nothing"

# For each language an assertion: what stands before the expected value, the value, what stands after it.
_PARTS = {
    "cpp": (r"[ \t]*assert\(.* == ", r"\(.*\)", r"\);"),
    "java": (r"[ \t]*assert\(.*(?: == |\.equals\()", r"\(.*\)", r"\);"),
    "cs": (r"[ \t]*Debug\.Assert\(.*(?: == |\.(?:Equals|SequenceEqual)\()", r"\(.*\)", r"\);"),
    "php": (r"[ \t]*if \(candidate\(.*\) !==? ", r".+", r"\) \{ throw new Exception\(.*\); \}"),
    "js": (r"[ \t]*assert\.deepEqual\(candidate\(.*\), ?", r".+", r"\);"),
    "sh": (r"[ \t]*\[\[ \$\(candidate.*\) = ", r'".*"', r" \]\]"),
}
_ASSERTIONS = {
    language: re.compile(f"^({head})({expected})({tail})$", re.MULTILINE)
    for language, (head, expected, tail) in _PARTS.items()
}
# Where the tests begin in a program that came whole: at the last of these.
_TESTS_BEGIN = {
    "cpp": "int main(",
    "java": "public static void main(",
    "cs": "public static void Main(",
    "php": "function test(",
    "js": "function test(",
    "sh": "run_test() {",
}


def wrong_assertion(language: str, source: str, tests: str) -> tuple[int, int, str] | None:
    """An assertion that no honest program passes, and the span in `source + tests` of all there are.

    Which one is made wrong depends on the program: to tell, it would have to know the right answers. None where the
    tests have no assertions of MultiPL-E's form, or none that can be made wrong.
    """
    program = source + tests
    begin = len(source) if tests else program.rfind(_TESTS_BEGIN[language])
    found = list(_ASSERTIONS[language].finditer(program, max(begin, 0)))
    if not found or begin < 0:
        return None
    digest = hashlib.sha256(program.encode(errors="replace")).digest()
    first = int.from_bytes(digest[:8], "big") % len(found)
    for match in found[first:] + found[:first]:
        head, expected, tail = match.groups()
        for other in _others(expected, [m[2] for m in found]):
            if _letters(other) != _letters(expected):
                return found[0].start(), found[-1].end(), head + other + tail
    return None


def _others(expected: str, all_expected: list[str]) -> Iterator[str]:
    """What else may stand in the place of an expected value: other tests', or this one with its literal changed."""
    yield from all_expected
    for literal, other in (("true", "false"), ("false", "true"), ("True", "False"), ("False", "True")):
        if expected.strip("()") == literal:
            yield expected.replace(literal, other)
    if re.fullmatch(r"\(?-?\d+[lL]?\)?", expected):
        yield re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), expected)
    if re.fullmatch(r'\(?"[^"\\]*"\)?', expected):
        yield re.sub(r'"(\)?)$', r'x"\1', expected)


def _letters(expected: str) -> list[str]:
    """What two equal values have in common however they are written: 1.0 and 1, or the same entries in two orders."""
    return sorted(re.sub(r"(?<=\d)\.0+\b|\s", "", expected))

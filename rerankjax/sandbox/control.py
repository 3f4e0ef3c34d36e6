"""The negative control: tests of which one is made wrong, so that no honest program can pass them.

The tests that MultiPL-E translates hold an assertion a line. The wrong one asks of one call what the tests expect of
another call, so that nothing need be known of the language's values. Python has its own (python.py).
"""

import dataclasses
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
# The tests' form of what is never so, for where no wrong assertion can be made of theirs.
_NEVER = {
    "cpp": "    assert(false);",
    "java": "    assert(false);",
    "cs": "    Debug.Assert(false);",
    "php": '    if (0 !== 1) { throw new Exception("Test failed!"); }',
    "js": "    assert.deepEqual(0, 1);",
    "sh": "    [[ 0 = 1 ]]",
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


@dataclasses.dataclass(frozen=True)
class Control:
    """Assertions that no honest program passes, and where they go: those of the tests are program[start:end].

    wrong: one of the tests' own, made wrong. Which one depends on the program: to tell, it would have to know the right
    answers. never: one that is false whatever the program does, for where `wrong` does not compile.
    """

    start: int
    end: int
    wrong: str
    never: str


def control(language: str, source: str, tests: str) -> Control | None:
    """The control of the program `source + tests`. None where its tests are not of MultiPL-E's form."""
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
                return Control(found[0].start(), found[-1].end(), head + other + tail, _NEVER[language])
    return Control(found[0].start(), found[-1].end(), _NEVER[language], _NEVER[language])


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

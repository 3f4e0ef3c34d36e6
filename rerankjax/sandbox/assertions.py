"""Tests in MultiPL-E's form, taken apart: what the program is to compute, and what the tests expect of it.

The program gets the tests without what they expect: instead of an assertion it *tells* the value (inside/*/[Tt]ell.*),
and the host compares. So it cannot read the answers, and no word of its own makes it pass. Tests of another form decide
for themselves, in the program's process; then a control, where an expected value has been made wrong, must fail.

Python's tests need no form (python_tests.py).
"""

import dataclasses
import re
from collections.abc import Iterator

from rerankjax.sandbox import values
from rerankjax.sandbox.literals import UnreadableError, literal
from rerankjax.sandbox.values import Value

_SPACE = re.compile(r"\s*")
# What stands before the assertions and after them, and in a program that came whole the text that begins the tests.
_FORMS = {
    "cpp": (r"\}?\s*int main\(\) \{\s*auto candidate = [\w:]+;", r"\s*(?:return 0;\s*)?\}\s*", "int main("),
    "java": (r"\}?\s*public static void main\(String\[\] args\) \{", r"\s*\}\s*\}\s*", "public static void main("),
    "cs": (r"\}?\s*public static void Main\(string\[\] args\) \{", r"\s*\}\s*\}\s*", "public static void Main("),
    "php": (
        r"\}?\s*function candidate\(\.\.\.\$args\) \{\s*return \w+\(\.\.\.\$args\);\s*\}\s*function test\(\): void \{",
        r"\s*\}\s*test\(\);\s*",
        "function candidate(",
    ),
    "js": (
        r"\}?\s*(?:declare var require: any;\s*)?const assert = require\('node:assert'\);\s*"
        r"function test\(\) \{\s*let candidate = [\w.$]+;",
        r"\s*\}\s*test\(\);\s*",
        "const assert = require('node:assert')",
    ),
    "sh": (
        r"\}?\s*candidate\(\) \{\s*\w+ \"\$@\"\s*\}\s*set -e\s*run_test\(\) \{",
        r"\s*\}\s*run_test\s*",
        "candidate() {",
    ),
}
_OPENS = {"cpp": "assert(", "java": "assert(", "cs": "Debug.Assert(", "php": "if (", "js": "assert.deepEqual("}
_ENDS = dict.fromkeys(("cpp", "java", "cs", "js"), re.compile(r"\s*;")) | {
    "php": re.compile(r'\s*\{ throw new Exception\("[^"$\\]*"\); \}')
}
_OPERATORS = {
    "cpp": re.compile(r"\s*(==)\s*(.*)", re.DOTALL),
    "java": re.compile(r"\s*(?:(==)\s*|\.(equals)\()(.*)", re.DOTALL),
    "cs": re.compile(r"\s*(?:(==)\s*|\.(Equals|SequenceEqual)\()(.*)", re.DOTALL),
    "php": re.compile(r"\s*(!==)\s*(.*)", re.DOTALL),
    "js": re.compile(r"\s*(,)\s*(.*)", re.DOTALL),
}
_TELLS = {
    "cpp": "rerankjax::tell({});",
    "java": "rerankjax.Tell.tell({});",
    "cs": "RerankjaxTell.{}({});",
    "php": "\\rerankjax_tell({});",
    "js": "rerankjaxTell({});",
    "sh": '_rerankjax_tell "{}"',
}
_BASH = re.compile(r'\[\[ (\$\(candidate(?: +"(?:[^"\\]|\\.)*")*\)) = "((?:[^"\\]|\\.)*)" \]\]', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Expected:
    """An assertion: its text, the operator that compares, and the value that must come."""

    text: str
    operator: str
    value: Value


@dataclasses.dataclass(frozen=True)
class Apart:
    """A program that tells what its tests are about, and what they expect in this order."""

    program: str
    expected: tuple[Expected, ...]


def apart(language: str, source: str, tests: str) -> Apart | None:
    """The program `source + tests` without what its tests expect; None where they are not of MultiPL-E's form.

    What `source` holds has no say in it. `tests` may be empty: then the last text that can begin tests begins them, and
    they must run to the end.
    """
    head, tail, marker = _FORMS[language]
    text = source + tests
    start = len(source) + (len(tests) - len(tests.lstrip()))
    if not tests:
        start = max(text.rfind(marker), 0)
        declared = text.rfind("declare var require", 0, start)
        if (
            language == "js"
            and declared >= 0
            and not text[declared:start].removeprefix("declare var require: any;").strip()
        ):
            start = declared
    opened = re.compile(head).match(text, start)
    if opened is None:
        return None
    position, parts, expected = opened.end(), [text[: opened.end()]], []
    try:
        while not re.compile(tail).fullmatch(text, position):
            spaces = _SPACE.match(text, position)
            assert spaces is not None
            call, assertion, end = _assertion(language, text, spaces.end())
            tell = ("TellReceiver" if assertion.operator == "Equals" else "Tell",) if language == "cs" else ()
            parts += [spaces[0], _TELLS[language].format(*tell, call)]
            expected.append(assertion)
            position = end
    except UnreadableError:
        return None
    if not expected or (language == "cpp" and _of_a_union(expected)):
        return None
    return Apart("".join(parts) + text[position:], tuple(expected))


def _of_a_union(expected: list[Expected]) -> bool:
    """Whether C++ tests ask for one of several types, which MultiPL-E makes a union that does not know which.

    It writes expected values without parentheses for these, and for optional ones, of which some are none.
    """
    return any("== (" not in e.text for e in expected) and not any(e.value == values.NONE for e in expected)


def begin(language: str, source: str, tests: str) -> int:
    """Where the tests begin in `source + tests`; at its end where nothing begins them."""
    position = len(source) if tests else (source.rfind(_FORMS[language][2]) if language in _FORMS else -1)
    return position if position >= 0 else len(source)


def _assertion(language: str, text: str, position: int) -> tuple[str, Expected, int]:
    """The call that the assertion at `position` makes, the assertion, and where it ends."""
    if language == "sh":
        match = _BASH.match(text, position)
        if match is None or re.search(r"(?<!\\)(?:\\\\)*[$`]", match[2]):
            raise UnreadableError
        # In double quotes a backslash keeps its meaning before these alone.
        text = re.sub(r'\\([$`"\\])', r"\1", match[2].replace("\\\n", ""))
        return match[1], Expected(match[0], "=", ("text", text.encode(errors="replace"))), match.end()
    if not text.startswith(_OPENS[language], position):
        raise UnreadableError
    begin = position + len(_OPENS[language])
    close = _closing(text, begin - 1)
    ended = _ENDS[language].match(text, close + 1)
    name = re.compile(r"\w+\(").match(text, begin)
    if ended is None or name is None:
        raise UnreadableError
    called = _closing(text, name.end() - 1) + 1
    compared = _OPERATORS[language].fullmatch(text[called:close])
    if compared is None or called > close:
        raise UnreadableError
    operator = next(filter(None, compared.groups()[:-1]))
    wanted = compared[compared.lastindex or 0]
    if operator[0].isalpha():  # the parenthesis of the method
        if not wanted.endswith(")"):
            raise UnreadableError
        wanted = wanted[:-1]
    value = literal(language, wanted)
    return text[begin:called], Expected(text[position : ended.end()], operator, value), ended.end()


_BRACKETS = re.compile(r"""[()\[\]{}]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)


def _closing(text: str, position: int) -> int:
    """Where the bracket that opens at `position` is closed."""
    depth = 0
    for match in _BRACKETS.finditer(text, position):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
            if depth == 0:
                return match.start()
    raise UnreadableError


# A control for tests that decide by themselves

_LITERAL = re.compile(
    r"""(?P<before>(?:===?|!==?|=|,|\b[eE]quals\(|\bAreEqual\()\s*\(*)"""
    r"""(?P<value>-?\d+(?:\.\d+)?(?![\w.])|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\b(?:true|false|True|False)\b)"""
    r"""(?=[lLfF]?\s*(?:[);,\]\n]|$))"""
)
_OPPOSITES = {"true": "false", "false": "true", "True": "False", "False": "True"}


def wrong_tests(tests: str) -> Iterator[str]:
    """`tests`, each time with another expected literal made wrong and all else the same."""
    for match in _LITERAL.finditer(tests):
        line = tests[tests.rfind("\n", 0, match.start()) + 1 : match.start()]
        # A literal is expected after a comma only where something compares, after a single "=" only in Bash.
        if match["before"].startswith(",") and not re.search(r"assert|equal|expect", line, re.IGNORECASE):
            continue
        if re.match(r"=(?!=)", match["before"]) and "[" not in line:
            continue
        value = match["value"]
        if value in _OPPOSITES:
            wrong = _OPPOSITES[value]
        elif value[0] in "\"'":
            wrong = f"{value[:-1]}x{value[-1]}"
        else:
            wrong = re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), value, count=1)
        yield tests[: match.start("value")] + wrong + tests[match.end("value") :]

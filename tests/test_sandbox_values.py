"""Literals read, values told, and the equality of each language, against what the languages themselves say."""

import pytest

from rerankjax.sandbox.assertions import apart, wrong_tests
from rerankjax.sandbox.literals import UnreadableError, literal
from rerankjax.sandbox.values import NONE, UNDEFINED, equal, told
from tests.test_sandbox_languages import LANGUAGES, SHAPES, honest

HALF = ("number", "f", 0.30000001192092896)  # what 0.3 is as a float of 32 bits
LITERALS = [
    ("cpp", "(0.3f)", HALF),
    ("cpp", "(float(-39))", ("number", "f", -39.0)),
    ("cpp", "std::nullopt", NONE),
    ("cpp", '(std::vector<std::string>({(std::string)"a\\n"}))', ("list", (("text", b"a\n"),))),
    ("cpp", "(std::map<std::string,long>({{\"a\", 1}}))", ("map", ((("text", b"a"), ("number", "i", 1)),))),
    ("cpp", "(std::vector<std::tuple<long, long>>({(std::tuple<long, long>)std::make_tuple(1, -2)}))",
     ("list", (("tuple", (("number", "i", 1), ("number", "i", -2))),))),
    ("java", "(new ArrayList<Long>(Arrays.asList((long)1l)))", ("list", (("number", "l", 1),))),
    ("java", "(new HashMap<String,Long>(Map.of(\"a\", 2l)))", ("map", ((("text", b"a"), ("number", "l", 2)),))),
    ("java", "Optional.empty()", ("optional", ())),
    ("java", "(Pair.with(0.3f, true))", ("tuple", (HALF, ("bool", True)))),
    ("java", '("\\u00e9")', ("text", "é".encode())),
    ("cs", "(new List<long>(new long[]{(long)1L}))", ("list", (("number", "l", 1),))),
    ("cs", "(new Dictionary<string,long>(){{\"a\", 1L}})", ("map", ((("text", b"a"), ("number", "l", 1)),))),
    ("cs", "(Tuple.Create((Nullable<long>)null, 1L))", ("tuple", (("nullable", NONE), ("number", "l", 1)))),
    ("php", 'array("1" => null, "a" => 2)',
     ("map", ((("number", "i", 1), NONE), (("text", b"a"), ("number", "i", 2))))),
    ("php", '"\\$5"', ("text", b"$5")),
    ("js", '{"a": [undefined, -1]}', ("map", ((("text", b"a"), ("list", (UNDEFINED, ("number", "d", -1.0)))),))),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "value"), LITERALS)
def test_literals(language: str, text: str, value: tuple) -> None:
    assert literal(language, text) == value


NO_LITERALS = [
    ("php", '"$x"'),
    ("cpp", "f(1)"),
    ("cpp", "(std::vector<long>(3))"),
    ("cpp", "010"),
    ("cpp", "{" * 100 + "}" * 100),
    ("java", "(1l"),
    ("js", "[1,,2]"),
    ("cs", '@"x"'),
]


@pytest.mark.parametrize(("language", "text"), NO_LITERALS)
def test_what_is_no_literal_is_refused(language: str, text: str) -> None:
    with pytest.raises(UnreadableError):
        literal(language, text)


@pytest.mark.parametrize(
    ("language", "operator", "expected", "actual", "same"),
    [
        ("cpp", "==", "(2.5f)", b"f2.5", True),
        ("cpp", "==", "(true)", b"i1", True),
        ("cpp", "==", "(0.3f)", b"f0.3", False),
        ("cpp", "==", "(std::make_tuple(1, 2))", b"[i1,i2]", False),
        ("java", "==", "(2l)", b"i2", True),
        ("java", "equals", "(2l)", b"i2", False),
        ("java", "equals", "null", b"n", False),
        ("java", "equals", "Optional.of(2l)", b"O(l2)", True),
        ("java", "equals", "(new HashMap<String,Long>(Map.of(\"a\", 1l, \"b\", 2l)))", b"{s62:l2,s61:l1}", True),
        ("cs", "Equals", "(new List<long>())", b"[]", False),
        ("cs", "SequenceEqual", "(new List<long>())", b"[]", True),
        ("cs", "Equals", "(Tuple.Create(1L, 2L))", b"(l1,l2)", True),
        ("cs", "Equals", "(Tuple.Create(1L, 2L))", b"(l1,N,l2)", False),
        ("php", "!==", "1", b"f1", False),
        ("php", "!==", "array(1, 2)", b"{i0:i1,i1:i2}", True),
        ("php", "!==", "array(1, 2)", b"{i1:i2,i0:i1}", False),
        ("php", "!==", 'array("a" => 1)', b"{s61:i1}", True),
        ("js", ",", "1", b"s31", True),
        ("js", ",", "1", b"b1", True),
        ("js", ",", "NaN", b"fNaN", True),
        ("js", ",", "null", b"u", True),
        ("js", ",", "0", b"n", False),
        ("js", ",", "[1]", b"{s30:f1}", False),
        ("js", ",", "[undefined]", b"[h]", False),
        ("js", ",", '{"a":1,"b":2}', b"{s62:f2,s61:s31}", True),
        ("js", ",", '"0x10"', b"f16", True),
    ],
)  # fmt: skip
def test_equality_is_the_languages(language: str, operator: str, expected: str, actual: bytes, same: bool) -> None:
    assert equal(language, operator, literal(language, expected), told(actual)) is same


NO_VALUES = [b"", b"?", b"i", b"i1i2", b"[i1", b"i1]", b"{i1}", b"s6", b"sxx", b"i" + b"9" * 5000, b"[" * 1000, b"\xff"]
NO_VALUES += [b"N", b"O", b"f1_0x", b"{i1:}", b"l" * 100, b",", b":"]


@pytest.mark.parametrize("frame", NO_VALUES)
def test_what_is_no_value_is_equal_to_nothing(frame: bytes) -> None:
    for language in ("cpp", "java", "cs", "php", "js"):
        for text in ("1", '"x"', "true"):
            assert not equal(language, "==", literal(language, text), told(frame))


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language not in ("py", "ts")])
def test_tests_are_taken_apart(language: str) -> None:
    one = honest(language)
    for source, tests in ((one.source, one.tests), (one.source + one.tests, "")):
        found = apart(language, source, tests)
        assert found is not None
        assert len(found.expected) == 2
        assert found.program.startswith(one.source)
        assert "== (3)" not in found.program
        assert all(expected.text.strip() in one.tests for expected in found.expected)
        assert all(expected.text.strip() not in found.program for expected in found.expected)
    assert apart(language, one.source + one.tests, "\n// more\n") is None
    # Tests of the program's own making, before those that count, are no tests.
    forged = apart(language, one.source + one.tests + "\n" + SHAPES[language][0], one.tests)
    assert forged is not None
    assert found is not None
    assert forged.expected == found.expected


def test_wrong_tests_differ_in_one_literal() -> None:
    tests = 'if (f(1) !== 2) throw 1;\nassert.equal(g("a"), "b");\nlet x = 5;\nif (h(true) == false) fail();\n'
    assert list(wrong_tests(tests)) == [
        tests.replace("!== 2", "!== 3"),
        tests.replace('"b"', '"bx"'),
        tests.replace("== false", "== true"),
    ]

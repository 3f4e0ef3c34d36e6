"""Values of the languages: as programs tell them, and when a language calls two of them equal.

A value is a tuple that begins with its kind: ("number", type, value), ("text", bytes), ("bool", value), ("none",),
("undefined",), ("hole",), ("list", items), ("tuple", items), ("set", items), ("optional", items), ("map", pairs),
("nullable", value) or ("object",), which is equal to nothing. The type of a number is i (int), l (long), f (float),
d (double) or c (char).
"""

import math
import re
from typing import Any

Value = tuple[Any, ...]
NONE, UNDEFINED = ("none",), ("undefined",)
DEPTH = 64  # of a value in values; what is deeper is none

# What programs tell (inside/*/[Tt]ell.*)

_TOLD = re.compile(rb"[\[\](){}<>,:]|[?A-Za-z][^\[\](){}<>,:]*")
_CLOSES = {b"[": (b"]", "list"), b"(": (b")", "tuple"), b"<": (b">", "set"), b"{": (b"}", "map")}


def told(frame: bytes) -> Value:
    """The value that a program says it has: ("object",) for whatever is not of the agreed form."""
    tokens = _TOLD.findall(frame)[::-1]
    try:
        value = _told(tokens, 0) if sum(map(len, tokens)) == len(frame) else ("object",)
    except (ValueError, LookupError, OverflowError):
        return ("object",)
    return ("object",) if tokens else value


def _told(tokens: list[bytes], depth: int) -> Value:
    if depth > DEPTH:
        raise ValueError
    token = tokens.pop()
    if token == b"N":
        if tokens.pop() != b",":
            raise ValueError
        return ("nullable", _told(tokens, depth + 1))
    if token == b"O":
        return ("optional", _told(tokens, depth + 1)[1])
    if token in _CLOSES:
        close, kind = _CLOSES[token]
        items = []
        while tokens[-1] != close:
            item = _told(tokens, depth + 1)
            if kind == "map":
                if tokens.pop() != b":":
                    raise ValueError
                item = (item, _told(tokens, depth + 1))
            items.append(item)
            if tokens[-1] == b",":
                tokens.pop()
        tokens.pop()
        return (kind, tuple(items))
    mark, text = token[:1], token[1:].decode("ascii")
    match mark:
        case b"n":
            return NONE
        case b"u":
            return UNDEFINED
        case b"h":
            return ("hole",)
        case b"b":
            return ("bool", text == "1")
        case b"s":
            return ("text", bytes.fromhex(text))
        case b"i" | b"l" | b"c":
            return ("number", mark.decode(), int(text))
        case b"f" | b"d":
            return ("number", mark.decode(), float(text))
        case _:
            return ("object",)


# Equality


def equal(language: str, operator: str, expected: Value, actual: Value) -> bool:
    """Whether `language` holds what a program told for equal to what a test expects, by the test's own operator."""
    match language:
        case "js" | "ts":
            return _deep_equal(expected, actual)
        case "php":
            return _identical(expected, actual)
        case "java":
            typed = operator == "equals"
            return not (typed and expected == NONE) and _java(expected, actual, typed=typed)
        case "cs":
            return _csharp(expected, actual, lists=operator == "SequenceEqual")
        case _:
            return _cpp(expected, actual)


def _all(same: Any, expected: Value, actual: Value, **options: bool) -> bool:
    pairs = zip(expected[1], actual[1], strict=False)
    return len(expected[1]) == len(actual[1]) and all(same(e, a, **options) for e, a in pairs)


def _key(value: Value) -> Value:
    return ("number", value[2]) if value[0] == "number" else value


def _same_maps(same: Any, expected: Value, actual: Value, **options: bool) -> bool:
    wanted, had = ({_key(key): item for key, item in value[1]} for value in (expected, actual))
    return wanted.keys() == had.keys() and all(same(wanted[key], had[key], **options) for key in wanted)


def _cpp(expected: Value, actual: Value) -> bool:
    if actual[0] == "bool":
        actual = ("number", "i", int(actual[1]))
    if expected[0] == "bool":
        expected = ("number", "i", int(expected[1]))
    if expected[0] != actual[0]:
        return False
    match expected[0]:
        case "number":
            return expected[2] == actual[2]
        case "list" | "tuple":
            return _all(_cpp, expected, actual)
        case "map":
            return _same_maps(_cpp, expected, actual)
    return expected == actual


def _java(expected: Value, actual: Value, *, typed: bool) -> bool:
    if expected[0] != actual[0]:
        return False
    match expected[0]:
        case "number":
            return expected[2] == actual[2] and (not typed or expected[1] == actual[1])
        case "list" | "tuple" | "optional":
            return _all(_java, expected, actual, typed=True)
        case "map":
            return _same_maps(_java, expected, actual, typed=True)
    return expected == actual


def _csharp(expected: Value, actual: Value, *, lists: bool, typed: bool = False) -> bool:
    """Lists and dictionaries are equal to themselves alone, unless SequenceEqual compares their items."""
    if expected[0] != actual[0]:
        return False
    match expected[0]:
        case "number":
            return expected[2] == actual[2] and (not typed or expected[1] == actual[1])
        case "list":
            return lists and _all(_csharp, expected, actual, lists=False, typed=True)
        case "tuple":
            return _all(_csharp, expected, actual, lists=False, typed=True)
        case "nullable":
            return _csharp(expected[1], actual[1], lists=False, typed=True)
        case "map":
            return False
    return expected == actual


def _identical(expected: Value, actual: Value) -> bool:
    """PHP's ===: types count, and in arrays the order."""
    if expected[0] == "list":
        expected = ("map", tuple((("number", "i", index), item) for index, item in enumerate(expected[1])))
    if expected[0] != actual[0]:
        return False
    if expected[0] == "number":
        return (expected[1] == "i") == (actual[1] == "i") and expected[2] == actual[2]
    if expected[0] == "map":
        return len(expected[1]) == len(actual[1]) and all(
            _identical(key, own_key) and _identical(item, own)
            for (key, item), (own_key, own) in zip(expected[1], actual[1], strict=True)
        )
    return expected == actual


def _deep_equal(expected: Value, actual: Value) -> bool:
    """Node's assert.deepEqual: == between what are no objects."""
    if expected[0] not in ("list", "map"):
        return actual[0] not in ("list", "map", "object") and _loosely(expected, actual)
    if expected[0] != actual[0]:
        return False
    return (_all if expected[0] == "list" else _same_maps)(_deep_equal, expected, actual)


def _loosely(expected: Value, actual: Value) -> bool:
    empty = (NONE, UNDEFINED)
    if expected in empty or actual in empty:
        return expected in empty and actual in empty
    if expected[0] == actual[0] == "text":
        return expected == actual
    numbers = [_js_number(value) for value in (expected, actual)]
    both_nan = all(value[0] == "number" and math.isnan(value[2]) for value in (expected, actual))
    return numbers[0] == numbers[1] or both_nan


def _js_number(value: Value) -> float:
    match value:
        case ("number", _, number):
            return number
        case ("bool", truth):
            return int(truth)
        case ("text", text):
            digits = text.decode(errors="replace").strip()
            if re.fullmatch(r"0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+", digits):
                return int(digits, 0)
            if re.fullmatch(r"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|Infinity)", digits):
                return float(digits)
            return math.nan if digits else 0
    return math.nan

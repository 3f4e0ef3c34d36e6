"""Values of the languages: as tests write them, as programs tell them, and when a language calls two of them equal.

A value is a tuple that begins with its kind: ("number", type, value), ("text", bytes), ("bool", value), ("none",),
("undefined",), ("hole",), ("list", items), ("tuple", items), ("set", items), ("optional", items), ("map", pairs),
("nullable", value) or ("object",), which is equal to nothing. The type of a number is i (int), l (long), f (float),
d (double) or c (char).
"""

import math
import re
import struct
from typing import Any

Value = tuple[Any, ...]
NONE, UNDEFINED = ("none",), ("undefined",)

_TOKENS = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[lLfFdDmM]?)(?![\w.])"
    r"|(?P<cast>\(\s*(?:const\s+)?[A-Za-z_][\w:.]*(?:<[\w:.,<>?\s]*>)?(?:\[\])*\s*\)(?=\s*[\w\"'({\[-]))"
    r"|(?P<name>(?:new\s+)?[A-Za-z_][\w:.]*(?:<[\w:.,<>?\s]*>)?(?:\[\])?)"
    r"|(?P<mark>=>|[\[\](){},:-]))",
    re.DOTALL,
)
_CONSTANTS: dict[str, Value] = {
    **dict.fromkeys(("true", "True"), ("bool", True)),
    **dict.fromkeys(("false", "False"), ("bool", False)),
    **dict.fromkeys(("null", "nullptr", "NULL", "std::nullopt"), NONE),
    "undefined": UNDEFINED,
    "NaN": ("number", "d", math.nan),
}
_LISTS = {"vector", "ArrayList", "LinkedList", "List", "asList", "of", "array", "[]", "list"}
_COPIES = {"vector", "ArrayList", "LinkedList", "List", "list", "map", "unordered_map", "HashMap", "TreeMap"} | {
    "Dictionary", "optional", "string",
}  # fmt: skip
_MAPS = {"map", "unordered_map", "HashMap", "TreeMap", "Dictionary"}
_TUPLES = {"make_tuple", "tuple", "pair", "make_pair", "with", "Create"}
_NUMBERS = {
    "float": "f",
    "double": "d",
    "long": "l",
    "int": "i",
    "Float": "f",
    "Double": "d",
    "Long": "l",
    "Integer": "i",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f", "v": "\v"}
_DEPTH = 64


class UnreadableError(ValueError):
    """A literal that is not of a form known here."""


def literal(language: str, text: str) -> Value:
    """The value that `text` has in `language`. Raises UnreadableError."""
    tokens = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKENS.match(text, at)
        if match is None:
            raise UnreadableError(text)
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    parser = _Parser(language, tokens)
    value = parser.value(0)
    if parser.tokens:
        raise UnreadableError(text)
    return value


class _Parser:
    def __init__(self, language: str, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens[::-1]
        self._language = language

    def _next(self) -> str:
        return self.tokens[-1][1] if self.tokens else ""

    def _pop(self) -> tuple[str, str]:
        if not self.tokens:
            raise UnreadableError
        return self.tokens.pop()

    def value(self, depth: int) -> Value:
        if depth > _DEPTH:
            raise UnreadableError
        kind, text = self._pop()
        if kind == "text":
            return _text(self._language, text)
        if kind == "number":
            return _number(self._language, text)
        if kind == "cast":
            return _cast(text.strip("() "), self.value(depth + 1))
        if kind == "name":
            return self._named(text, depth)
        if text == "-":
            return _negative(self.value(depth + 1))
        if text == "(":
            inner = self.value(depth + 1)
            if self._pop()[1] != ")":
                raise UnreadableError
            return inner
        if text in "[{":
            return self._items(text, depth)
        raise UnreadableError

    def _named(self, text: str, depth: int) -> Value:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        name = re.sub(r"^new\s+|<.*>", "", text, flags=re.DOTALL)
        owner, base = ("", "[]") if name.endswith("[]") else re.fullmatch(r"(?:(.*)(?:::|\.))?(.*)", name).groups()  # type: ignore[union-attr]
        content: Value = ("list", ())
        if self._next() == "(":
            self._pop()
            content = self._items("(", depth)
            if content[0] == "list" and base in _COPIES and len(content[1]) < 2:
                content = content[1][0] if content[1] else content
        if self._next() == "{":
            self._pop()
            content = self._items("{", depth)
        items = content[1] if content[0] in ("list", "map") else ()
        if owner == "Optional" and base in ("of", "empty"):
            return ("optional", items)
        if owner == "Map" and base == "of" and len(items) % 2 == 0:
            return ("map", tuple(zip(items[::2], items[1::2], strict=True)))
        if base in _LISTS and content[0] in ("list", "map"):
            return content
        if base in _MAPS and content[0] == "list" and all(i[0] == "list" and len(i[1]) == 2 for i in items):
            return ("map", tuple(item[1] for item in items))
        if base in _MAPS and content[0] == "map":
            return content
        if base in _TUPLES and content[0] == "list":
            return ("tuple", items)
        if base in _NUMBERS and content[0] == "list" and len(items) == 1:
            return _cast(base, items[0])  # type: ignore[misc]
        if (base == "optional" or base == "string") and content[0] not in ("list", "map"):
            return content
        raise UnreadableError(text)

    def _items(self, opened: str, depth: int) -> Value:
        """What follows an opening bracket: a list, or a map where its items are pairs."""
        close = {"(": ")", "[": "]", "{": "}"}[opened]
        items: list[Value] = []
        pairs: list[tuple[Value, Value]] = []
        while self._next() != close:
            item = self.value(depth + 1)
            if self._next() in (":", "=>"):
                self._pop()
                pairs.append((item, self.value(depth + 1)))
            else:
                items.append(item)
            if self._next() == ",":
                self._pop()
            elif self._next() != close:
                raise UnreadableError
        self._pop()
        if items and pairs:
            raise UnreadableError
        if self._language == "php":  # whose keys that are written as integers are integers
            pairs = [(_php_key(key), item) for key, item in pairs]
        if pairs or (opened == "{" and self._language in ("js", "ts")):
            return ("map", tuple(pairs))
        return ("list", tuple(items))


def _php_key(key: Value) -> Value:
    whole = key[0] == "text" and re.fullmatch(rb"0|-?[1-9]\d*", key[1])
    return ("number", "i", int(key[1])) if whole else key


def _text(language: str, text: str) -> Value:
    quote, body = text[0], text[1:-1]
    if language == "php" and (re.search(r"(?<!\\)(?:\\\\)*\$", body) or quote == "'"):
        raise UnreadableError(text)

    def escape(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "ux" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code in "\\\"'$/`" or (code in _ESCAPES and not (language == "php" and code == "b")):
            return _ESCAPES.get(code, code)
        raise UnreadableError(text)

    body = re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", escape, body, flags=re.DOTALL)
    if quote == "'" and language in ("cpp", "java", "cs"):
        if len(body) != 1:
            raise UnreadableError(text)
        return ("number", "c", ord(body))
    return ("text", body.encode(errors="replace"))


def _number(language: str, text: str) -> Value:
    digits, suffix = text.rstrip("lLfFdDmM"), text.lstrip("-0123456789.eE+").lower()
    if language == "js" or language == "ts":
        return ("number", "d", float(digits))
    if re.fullmatch(r"-?0\d+", digits):  # octal
        raise UnreadableError(text)
    if suffix in ("f", "d", "m") or any(c in digits for c in ".eE"):
        return _cast("float" if suffix == "f" else "double", ("number", "d", float(digits)))
    return ("number", suffix or "i", int(digits))


def _negative(value: Value) -> Value:
    if value[0] != "number":
        raise UnreadableError
    return ("number", value[1], -value[2])


def _cast(name: str, value: Value) -> Value:
    if name.startswith("Nullable<"):
        return ("nullable", value)
    kind = _NUMBERS.get(name)
    if kind is None or value[0] != "number":
        return value
    number = value[2]
    if kind == "f":
        number = struct.unpack("f", struct.pack("f", number))[0] if abs(number) < 3e38 else float(number)
    elif kind == "d":
        number = float(number)
    else:
        number = int(number)
    return ("number", kind, number)


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
    if depth > _DEPTH:
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
        expected = ("map", tuple((("number", "i", at), item) for at, item in enumerate(expected[1])))
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

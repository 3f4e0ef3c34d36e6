"""Literals of the languages, as MultiPL-E's tests write expected values: from text to the values of values.py."""

import math
import re
import struct

from rerankjax.sandbox.values import DEPTH, NONE, UNDEFINED, Value

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


class UnreadableError(ValueError):
    """A literal that is not of a form known here."""


def literal(language: str, text: str) -> Value:
    """The value that `text` has in `language`. Raises UnreadableError."""
    tokens = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKENS.match(text, position)
        if match is None:
            raise UnreadableError(text)
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
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
        if depth > DEPTH:
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

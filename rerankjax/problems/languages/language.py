"""What a language has to say for the made-up family to be written in it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """MultiPL-E's forms (nuprl/MultiPL-E) for a function f of a list x of integers; each %s or %d is filled in.

    prompt: of English, an example's list and its answer. numbers: a list, of its numbers. empty: a list of none.
    number: one in a list. answer: what f returns. assertion: of a list and its answer. tests: of assertions.
    indent: before each line of a solution. end: what a solution closes with.
    idioms: for the name of a kind the text that does it right, then the one with its fault if it has one; "{k}" is the
    constant. Each is a translation of the kind's `run`. Where that raises (the greatest of no numbers), so does the
    text, or f returns what is no integer. A kind that the language has no text for is not asked of it.
    """

    prompt: str
    numbers: str
    empty: str
    number: str
    answer: str
    assertion: str
    tests: str
    indent: str
    end: str
    idioms: Mapping[str, tuple[str, ...]]
    stop_tokens: tuple[str, ...]
    separator: str = ", "

    def list_of(self, x: Sequence[int]) -> str:
        return self.numbers % self.separator.join(self.number % v for v in x) if x else self.empty


# Which v to keep: a value, how it compares (with the fault: the other way), to what.
_KEPT = {
    "even": ("v % 2", ("==",), "0"),
    "odd": ("v % 2", ("!=",), "0"),
    "positive": ("v", (">",), "0"),
    "negative": ("v", ("<",), "0"),
    "nonzero": ("v", ("!=",), "0"),
    "multiple": ("v % {k}", ("==",), "0"),
    "indivisible": ("v % {k}", ("!=",), "0"),
    "without": ("v", ("!=",), "{k}"),
    "at_least": ("v", (">=", ">"), "{k}"),
    "at_most": ("v", ("<=", "<"), "{k}"),
    "within": ("|v|", ("<=", "<"), "{k}"),
}
_OPPOSITE = {"==": "!=", "!=": "==", ">": "<=", "<=": ">", "<": ">=", ">=": "<"}

# What becomes of each v.
_VALUES = {
    "add": ("v + {k}",),
    "subtract": ("v - {k}",),
    "multiply": ("v * {k}",),
    "negate": ("-v",),
    "square": ("v * v",),
    "absolute": ("|v|",),
    "cap": ("min",),
    "raise": ("max",),
    "distance": ("|v - {k}|", "{k} - v"),
}


def each_alone(
    keep: str, drop: str, each: str, magnitude: str, lesser: str, greater: str, variable: str = "v"
) -> dict[str, tuple[str, ...]]:
    """The kinds that look at one number at a time.

    keep, drop: a step with its [test] to fill in, of the numbers that stay or that go; one of the two is "".
    each: a step with its [value] to fill in. magnitude: of "%s". lesser, greater: of v and {k}. variable: how v is
    written.
    """

    def spell(text: str) -> str:
        text = {"min": lesser, "max": greater}.get(text, text)
        text = re.sub(r"\|(.*?)\|", lambda inner: magnitude % inner[1], text)
        return re.sub(r"\bv\b", lambda _: variable, text)

    kept = {
        name: tuple(
            (drop or keep).replace("[test]", spell(f"{value} {_OPPOSITE[c] if drop else c} {bound}")) for c in compared
        )
        for name, (value, compared, bound) in _KEPT.items()
    }
    return kept | {name: tuple(each.replace("[value]", spell(v)) for v in values) for name, values in _VALUES.items()}

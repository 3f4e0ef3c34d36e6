"""What the made-up family is made of: kinds of list step and of final reduction, and how each tends to go wrong.

A kind's `code` and its `run` say the same thing twice on purpose: `run` is the reference that decides labels and
tests without executing text, `code` is what a solution says. tests/test_problems.py holds the two together.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Transform = Callable[[list[int], int], Any]


@dataclass(frozen=True)
class Fault:
    """The systematic mistake of a kind: what is written in place of `Kind.code`, and what that does."""

    code: str
    run: Transform


@dataclass(frozen=True)
class Kind:
    """A step (list to list) or a final reduction (list to int).

    english: two paraphrases; code: a Python expression of the list x. Both hold "{k}" where the kind takes a constant.
    """

    name: str
    english: tuple[str, str]
    code: str
    run: Transform
    fault: Fault | None = None

    @property
    def takes_constant(self) -> bool:
        return "{k}" in self.code


def _keep(name: str, english: tuple[str, str], test: str, run: Callable[[int, int], Any]) -> Kind:
    return Kind(name, english, f"[v for v in x if {test}]", lambda x, k: [v for v in x if run(v, k)])


def _each(name: str, english: tuple[str, str], value: str, run: Callable[[int, int], int]) -> Kind:
    return Kind(name, english, f"[{value} for v in x]", lambda x, k: [run(v, k) for v in x])


SOUND_STEPS = (
    _keep("even", ("Keep the even numbers.", "Drop odd numbers."), "v % 2 == 0", lambda v, k: v % 2 == 0),
    _keep("odd", ("Keep the odd numbers.", "Drop even numbers."), "v % 2 == 1", lambda v, k: v % 2 == 1),
    _keep("positive", ("Keep the positive numbers.", "Drop zero and negative numbers."), "v > 0", lambda v, k: v > 0),
    _keep("negative", ("Keep the negative numbers.", "Drop zero and positive numbers."), "v < 0", lambda v, k: v < 0),
    _keep("nonzero", ("Drop the zeros.", "Keep what is not zero."), "v != 0", lambda v, k: v != 0),
    _keep("multiple", ("Keep the multiples of {k}.", "Keep what {k} divides."), "not v % {k}", lambda v, k: v % k == 0),
    _keep("indivisible", ("Drop the multiples of {k}.", "Leave out what {k} divides."), "v % {k}", lambda v, k: v % k),
    _keep("without", ("Drop every {k}.", "Keep what is not {k}."), "v != {k}", lambda v, k: v != k),
    _each("add", ("Add {k} to each.", "Increase each by {k}."), "v + {k}", lambda v, k: v + k),
    _each("subtract", ("Subtract {k} from each.", "Decrease each by {k}."), "v - {k}", lambda v, k: v - k),
    _each("multiply", ("Multiply each by {k}.", "Scale each by {k}."), "v * {k}", lambda v, k: v * k),
    _each("negate", ("Negate each.", "Flip the sign of each."), "-v", lambda v, k: -v),
    _each("square", ("Square each.", "Multiply each by itself."), "v * v", lambda v, k: v * v),
    _each("absolute", ("Take the absolute values.", "Remove the signs."), "abs(v)", lambda v, k: abs(v)),
    _each("remainder", ("Take each modulo {k}.", "Take remainders by {k}."), "v % {k}", lambda v, k: v % k),
    _each("cap", ("Cap each at {k}.", "Lower what exceeds {k} to {k}."), "min(v, {k})", lambda v, k: min(v, k)),
    _each("raise", ("Raise each to {k} or more.", "Lift lesser ones to {k}."), "max(v, {k})", lambda v, k: max(v, k)),
    Kind("reverse", ("Reverse the list.", "Turn the list around."), "x[::-1]", lambda x, k: x[::-1]),
    Kind("tail", ("Drop the first one.", "Leave out the front one."), "x[1:]", lambda x, k: x[1:]),
    Kind("front", ("Drop the last one.", "Leave out the end one."), "x[:-1]", lambda x, k: x[:-1]),
    Kind("rotate", ("Move the first one to the end.", "Rotate left."), "x[1:] + x[:1]", lambda x, k: x[1:] + x[:1]),
    Kind("twice", ("Repeat the list.", "Put the list after itself."), "x + x", lambda x, k: x + x),
    Kind(
        "neighbours",
        ("Add up neighbours.", "Take sums of adjacent pairs."),
        "[a + b for a, b in zip(x, x[1:])]",
        lambda x, k: [a + b for a, b in itertools.pairwise(x)],
    ),
)

FAULTY_STEPS = (
    Kind(
        "at_least",
        ("Keep numbers of at least {k}.", "Keep {k} and more."),
        "[v for v in x if v >= {k}]",
        lambda x, k: [v for v in x if v >= k],
        Fault("[v for v in x if v > {k}]", lambda x, k: [v for v in x if v > k]),
    ),
    Kind(
        "at_most",
        ("Keep numbers of at most {k}.", "Keep {k} and less."),
        "[v for v in x if v <= {k}]",
        lambda x, k: [v for v in x if v <= k],
        Fault("[v for v in x if v < {k}]", lambda x, k: [v for v in x if v < k]),
    ),
    Kind(
        "within",
        ("Keep numbers from -{k} to {k}.", "Keep sizes up to {k}."),
        "[v for v in x if abs(v) <= {k}]",
        lambda x, k: [v for v in x if abs(v) <= k],
        Fault("[v for v in x if abs(v) < {k}]", lambda x, k: [v for v in x if abs(v) < k]),
    ),
    Kind(
        "truncate",
        ("Divide each by {k}, toward zero.", "Take {k}ths, cut to whole numbers."),
        "[int(v / {k}) for v in x]",
        lambda x, k: [int(v / k) for v in x],
        Fault("[v // {k} for v in x]", lambda x, k: [v // k for v in x]),
    ),
    Kind(
        "descending",
        ("Sort descending.", "Sort from large to small."),
        "sorted(x, reverse=True)",
        lambda x, k: sorted(x, reverse=True),
        Fault("sorted(x)", lambda x, k: sorted(x)),
    ),
    Kind(
        "unique",
        ("Drop repeats.", "Keep the first of equals."),
        "list(dict.fromkeys(x))",
        lambda x, k: list(dict.fromkeys(x)),
        Fault("sorted(set(x))", lambda x, k: sorted(set(x))),
    ),
    Kind(
        "alternate",
        ("Keep every other one from the first.", "Drop the 2nd, 4th and so on."),
        "x[::2]",
        lambda x, k: x[::2],
        Fault("x[1::2]", lambda x, k: x[1::2]),
    ),
    Kind(
        "skip",
        ("Drop the first {k}.", "Skip {k} at the front."),
        "x[{k}:]",
        lambda x, k: x[k:],
        Fault("x[{k} + 1:]", lambda x, k: x[k + 1 :]),
    ),
    Kind(
        "last",
        ("Keep the last {k}.", "Take {k} from the end."),
        "x[-{k}:]",
        lambda x, k: x[-k:],
        Fault("x[-{k}:-1]", lambda x, k: x[-k:-1]),
    ),
    Kind(
        "differences",
        ("Take steps between neighbours.", "Subtract from each its predecessor."),
        "[b - a for a, b in zip(x, x[1:])]",
        lambda x, k: [b - a for a, b in itertools.pairwise(x)],
        Fault("[a - b for a, b in zip(x, x[1:])]", lambda x, k: [a - b for a, b in itertools.pairwise(x)]),
    ),
    Kind(
        "totals",
        ("Take running totals.", "Add to each all before it."),
        "[sum(x[:i + 1]) for i in range(len(x))]",
        lambda x, k: [sum(x[: i + 1]) for i in range(len(x))],
        Fault("[sum(x[:i]) for i in range(len(x))]", lambda x, k: [sum(x[:i]) for i in range(len(x))]),
    ),
    Kind(
        "positions",
        ("Multiply each by its position from 1.", "Weight the first by 1, the next by 2."),
        "[v * (i + 1) for i, v in enumerate(x)]",
        lambda x, k: [v * (i + 1) for i, v in enumerate(x)],
        Fault("[v * i for i, v in enumerate(x)]", lambda x, k: [v * i for i, v in enumerate(x)]),
    ),
    Kind(
        "distance",
        ("Take distances from {k}.", "How far is each from {k}?"),
        "[abs(v - {k}) for v in x]",
        lambda x, k: [abs(v - k) for v in x],
        Fault("[{k} - v for v in x]", lambda x, k: [k - v for v in x]),
    ),
    Kind(
        "first",
        ("Keep the first {k}.", "Take {k} from the front."),
        "x[:{k}]",
        lambda x, k: x[:k],
        Fault("x[:{k} - 1]", lambda x, k: x[: k - 1]),
    ),
    Kind(
        "append",
        ("Append {k}.", "Put {k} at the end."),
        "x + [{k}]",
        lambda x, k: [*x, k],
        Fault("[{k}] + x", lambda x, k: [k, *x]),
    ),
)

STEPS = SOUND_STEPS + FAULTY_STEPS

FINALS = (
    Kind("sum", ("Return the sum.", "Add all up."), "sum(x)", lambda x, k: sum(x)),
    Kind("count", ("Return how many are left.", "Count them."), "len(x)", lambda x, k: len(x)),
    Kind("distinct", ("Return how many differ.", "Count distinct ones."), "len(set(x))", lambda x, k: len(set(x))),
    Kind(
        "squares",
        ("Return the sum of squares.", "Square and add all up."),
        "sum(v * v for v in x)",
        lambda x, k: sum(v * v for v in x),
    ),
    Kind(
        "least",
        ("Return the smallest, or 0.", "Find the minimum, 0 if none."),
        "min(x, default=0)",
        lambda x, k: min(x, default=0),
    ),
    Kind(
        "head",
        ("Return the first, or 0.", "Give the front one, 0 if none."),
        "x[0] if x else 0",
        lambda x, k: x[0] if x else 0,
    ),
    Kind(
        "greatest",
        ("Return the largest, or 0.", "Find the maximum, 0 if none."),
        "max(x, default=0)",
        lambda x, k: max(x, default=0),
        Fault("max(x)", lambda x, k: max(x)),
    ),
    Kind(
        "end",
        ("Return the last, or 0.", "Give the end one, 0 if none."),
        "x[-1] if x else 0",
        lambda x, k: x[-1] if x else 0,
        Fault("x[-1]", lambda x, k: x[-1]),
    ),
)

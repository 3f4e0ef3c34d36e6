"""What a prompt shows of its function: calls with their values, and more calls made from these. Python only.

Nothing here is given a problem's tests: a function of the prompt's text alone cannot read what is hidden.
"""

import ast
import builtins
import copy
import doctest
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# What stands between a call and its value where a docstring says it in a line: `f(2) == 4`, `f(2) => 4`.
_MARKS = re.compile(r"\s*(?:==?>?|->|➞|#\s*=>|(?:should\s+)?returns?:?)\s*")
_INLINE = "abcdefghijklmnopqrstuvwxyz"
_GREATEST = 1_000  # of the integers in made inputs: larger ones would only make programs slow
_TRIES = 20  # for each input that is wanted


@dataclass(frozen=True)
class Example:
    """A call of literals, as Python writes it, and the text of its value; None where the prompt does not show it."""

    call: str
    expected: str | None


def examples(prompt: str) -> tuple[Example, ...]:
    """The examples in a Python prompt, each call once: of doctests, of a docstring's lines, and of assertions.

    An assertion in a prompt is one of the tests that decide (MBPP shows all of them), so its call alone is taken:
    choosing by its value would be choosing by the tests. Calls are those of the prompt's function: the one that its
    last assertion calls, or else the last that it defines. Shots before the problem have other functions.
    """
    asserted = [call for line in prompt.splitlines() if (call := _asserted(line))]
    if asserted:
        own, _ = asserted[-1]
        all_examples = [Example(call, None) for name, call in asserted if name == own]
    else:
        defined = re.findall(r"^\s*def\s+(\w+)\s*\(", prompt, re.MULTILINE)
        all_examples = list(_shown(prompt, defined[-1])) if defined else []
    first: dict[str, Example] = {}
    for example in all_examples:
        first.setdefault(example.call, example)
    return tuple(first.values())


def _asserted(line: str) -> tuple[str, str] | None:
    """The function that an assertion calls, and the call."""
    tree = _parse(line.strip()) if line.lstrip().startswith("assert ") else None
    calls = ((_called(node), node) for node in ast.walk(tree)) if tree else ()
    return next(((name, ast.unparse(call)) for name, call in calls if name and not hasattr(builtins, name)), None)


def _shown(prompt: str, name: str) -> Iterator[Example]:
    prompt = re.sub("\"{3}|'{3}", "\n", prompt)  # the docstring's end is no part of a value
    try:
        doctests = doctest.DocTestParser().get_examples(prompt)
    except ValueError:  # uneven indentation
        doctests = []
    for shown in doctests:
        call = _call(shown.source.strip(), name)
        if call and shown.want:
            yield Example(call, shown.want.strip())
    for line in prompt.splitlines():
        for match in re.finditer(rf"\b{re.escape(name)}\(", line):
            yield from _inline(line[match.start() :], name)


def _inline(text: str, name: str) -> Iterator[Example]:
    """The call at the start of `text`, if it is one of literals and a mark and a literal follow it."""
    for end in (match.end() for match in re.finditer(r"\)", text)):
        call = _call(text[:end], name)
        if call:
            mark = _MARKS.match(text, end)
            value = _literal_prefix(text[mark.end() :]) if mark else None
            if value is not None:
                yield Example(call, value)
            return


def _literal_prefix(text: str) -> str | None:
    """The longest beginning of `text` that is a literal."""
    ends = [match.start() for match in re.finditer(r"$|\s|[.,;#]", text)]
    return next((text[:end] for end in reversed(ends) if _is_literal(text[:end].strip())), None)


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _call(text: str, name: str) -> str | None:
    """`text` as Python writes it, if it is a call of `name` with literals."""
    tree = _parse(text)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    call = tree.body[0].value
    return ast.unparse(call) if _called(call) == name else None


def _called(node: ast.AST) -> str:
    """The plain name that a call of literals calls; "" where `node` is none."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return ""
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    return node.func.id if all(_is_literal(ast.unparse(part)) for part in given) else ""


def made_calls(calls: Sequence[str], count: int) -> tuple[str, ...]:
    """Up to `count` more calls: those given with one to three small changes to their arguments, of the same types.

    The same calls give the same inputs everywhere. Fewer come out where there is little to change.
    """
    rng = random.Random(f"rerankjax inputs {calls}")
    made: dict[str, None] = {}
    for _ in range(_TRIES * count if calls else 0):
        call: Any = ast.parse(rng.choice(calls), mode="eval").body
        places = [*call.args, *(keyword.value for keyword in call.keywords)]
        if not places:
            break
        values = [ast.literal_eval(place) for place in places]
        for _ in range(rng.randint(1, 3)):
            index = rng.randrange(len(values))
            values[index] = _changed(values[index], rng)
        arguments = ast.parse(f"f({', '.join(map(repr, values))})", mode="eval").body.args  # type: ignore[attr-defined]
        call.args, named = arguments[: len(call.args)], arguments[len(call.args) :]
        for keyword, value in zip(call.keywords, named, strict=True):
            keyword.value = value
        text = ast.unparse(call)
        if text not in calls:
            made[text] = None
        if len(made) == count:
            break
    return tuple(made)


def _changed(value: Any, rng: random.Random) -> Any:
    """A value of the same type, little different."""
    match value:
        case bool():
            return not value
        case int():
            changed = rng.choice((value + 1, value - 1, -value, 2 * value, 0, rng.randint(-9, 9)))
            return changed if abs(changed) <= max(_GREATEST, abs(value)) else value
        case float():
            return rng.choice((value + 1, value - 1, -value, value / 2, 0.0, round(value) + 0.5))
        case str():
            return "".join(_changed_items(list(value), lambda: rng.choice(value or _INLINE), _other_letter, rng))
        case list():
            return _changed_items(list(value), lambda: _new_item(value, rng), _changed, rng)
        case tuple() if value:  # its length may be part of what it means
            index = rng.randrange(len(value))
            return (*value[:index], _changed(value[index], rng), *value[index + 1 :])
        case set() if value:
            items = sorted(value, key=repr)
            return set(_changed_items(items, lambda: _new_item(items, rng), _changed, rng)) or value
        case dict() if value:
            changed_key = rng.choice(sorted(value, key=repr))
            return {key: _changed(item, rng) if key == changed_key else copy.copy(item) for key, item in value.items()}
    return value


def _other_letter(letter: str, rng: random.Random) -> str:
    return str(rng.choice("0123456789")) if letter.isdigit() else rng.choice((letter.swapcase(), rng.choice(_INLINE)))


def _new_item(items: Sequence[Any], rng: random.Random) -> Any:
    return _changed(rng.choice(items), rng) if items else rng.randint(-9, 9)


def _changed_items(
    items: list[Any], new: Callable[[], Any], change: Callable[[Any, random.Random], Any], rng: random.Random
) -> list[Any]:
    """The items with one changed, added, doubled, dropped or moved; seldom none of them."""
    index = rng.randrange(len(items)) if items else 0
    match rng.choice(("change", "change", "add", "add", "double", "drop", "shuffle", "empty")):
        case "change" if items:
            items[index] = change(items[index], rng)
        case "double" if items:
            items.insert(index, items[index])
        case "drop" if items:
            del items[index]
        case "shuffle":
            rng.shuffle(items)
        case "empty" if rng.random() < 0.5:
            items.clear()
        case _:
            items.insert(index, new())
    return items

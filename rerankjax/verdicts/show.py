"""How a value is written for comparison: the same text for values that tests would take for equal.

Its own text runs in the sandbox below the program that made the value, so it imports nothing of the package.
"""

import hashlib
from typing import Any

SHOWN_CHARACTERS = 120  # of a longer text a digest stands for it
DEPTH = 20


def shown(value: Any) -> str:
    """The text of a value: of sets and dicts in a fixed order, of whole floats as integers, of objects their class."""
    text = _text(value, 0)
    return text if len(text) <= SHOWN_CHARACTERS else "#" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(value: Any, depth: int) -> str:
    if depth > DEPTH:
        return "..."
    kind = type(value)
    if kind is float:
        return str(int(value)) if value.is_integer() else f"{value:.10g}"
    if kind in (bool, int, str, bytes, complex, range, type(None)):
        return ascii(value)
    if isinstance(value, list | tuple):
        opening, closing = "[]" if isinstance(value, list) else "()"
        return opening + ", ".join([_text(item, depth + 1) for item in value]) + closing
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted([_text(item, depth + 1) for item in value])) + "}"
    if isinstance(value, dict):
        items = [f"{_text(key, depth + 1)}: {_text(item, depth + 1)}" for key, item in value.items()]
        return "dict{" + ", ".join(sorted(items)) + "}"
    return f"<{kind.__name__}>"

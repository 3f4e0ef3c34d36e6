"""Runs inside the box, at both ends: Python values as text that, read back, holds nothing of a program but data.

What is no plain value (of a class of the program's, a function, an iterator) stays where it is; a handle goes in its
place, and whoever has the handle asks for what it does (solver.py, examiner.py).
"""

import collections
import datetime
import decimal
import fractions
import json
from collections.abc import Callable
from typing import Any

PLAIN_INT = 1 << 53
MESSAGE_BYTES = 64 << 20
_NAMED = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_SEQUENCES: dict[str, Callable[[list], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": complex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "Decimal": decimal.Decimal,
    "Fraction": fractions.Fraction,
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "time": datetime.time.fromisoformat,
    "type": _NAMED.__getitem__,
}


def dumps(value: Any, handle: Callable[[Any], Any]) -> bytes:
    """`handle` gives the text's number for what is no plain value, or raises. RecursionError for a value in itself."""
    return json.dumps(_encoded(value, handle)).encode()


def _encoded(value: Any, handle: Callable[[Any], Any]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if isinstance(value, int):
        return int(value) if -PLAIN_INT < value < PLAIN_INT else {"int": hex(value)}
    if isinstance(value, list):
        return [_encoded(item, handle) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"dict": [[_encoded(k, handle), _encoded(v, handle)] for k, v in dict.items(value)]}
    for name, base in (("tuple", tuple), ("set", set), ("frozenset", frozenset), ("deque", collections.deque)):
        if isinstance(value, base):
            return {name: [_encoded(item, handle) for item in base.__iter__(value)]}  # type: ignore[arg-type]
    if isinstance(value, str):
        return str.__add__(value, "")
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if kind is range:
        return {"range": [_encoded(end, handle) for end in (value.start, value.stop, value.step)]}
    if kind in (complex, decimal.Decimal, fractions.Fraction):
        return {kind.__name__: str(value)}
    if kind in (datetime.date, datetime.datetime, datetime.time):
        return {kind.__name__: value.isoformat()}
    if kind is type and value in _NAMED.values():
        return {"type": value.__name__}
    return {"handle": handle(value)}


def loads(data: bytes, handle: Callable[[Any], Any]) -> Any:
    """The value of `dumps`; `handle` gives what stands for a handle. Raises ValueError for any other bytes."""
    try:
        return _decoded(json.loads(data), handle)
    except (ArithmeticError, LookupError, TypeError, AttributeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"not a value: {error!r}") from None


def _decoded(value: Any, handle: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, handle) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "handle":
        return handle(content)
    if name == "dict":
        return {_decoded(key, handle): _decoded(item, handle) for key, item in content}
    if name in _TEXTS:
        return _TEXTS[name](content)
    items = [_decoded(item, handle) for item in content]
    return range(*items) if name == "range" else _SEQUENCES[name](items)

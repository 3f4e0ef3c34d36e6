"""Runs inside a box of its own: Python tests of a program that runs elsewhere (solver.py), values between them.

A name that the tests use and do not have is the program's. All that comes from there is data, compared here; an object
of the program's own is equal to no value, whatever it says of itself.
"""

import builtins
import importlib
import os
import symtable
import sys
from collections.abc import Callable
from typing import Any

from rerankjax.sandbox.inside import program, solver, wire

INSEPARABLE, LOST, BELIEVED = "inseparable", "lost", "believed"
PYTHON = solver.MODULES | frozenset(dir(builtins))  # before the fork, which would copy the page of each of these names


class InseparableError(program.Unjudged):
    """The tests give the program what is no value."""


class LostError(program.Unjudged):
    """The program has ended, or no longer answers as agreed."""


def run(tests: str, report: Callable[[str], None], hear: int, tell: int) -> int:
    """Run `tests`. Reports what they say of the program, INSEPARABLE or LOST, and returns the exit code.

    BELIEVED is a pass for which the program itself has said that two of its objects are equal, or of a class.
    """
    peer = _Peer(hear, tell)

    def say(kind: str) -> None:
        report(BELIEVED if kind == "passed" and peer.believed else kind)

    try:
        return program.run("", tests, say, names=lambda: peer.names(tests))
    except InseparableError:
        report(INSEPARABLE)
    except LostError:
        report(LOST)
    return 1


def free_names(tests: str) -> set[str]:
    """The global names that `tests` uses and never gives a value, those of builtins among them."""
    tables = [symtable.symtable(tests, "tests.py", "exec")]
    top = tables[0]
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used: set[str] = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global() or (table is top and s.is_referenced())}
    return used - own


class _Peer:
    def __init__(self, hear: int, tell: int) -> None:
        self._hear, self._tell = hear, tell
        self._modules_may_come = False
        self.believed = False

    def names(self, tests: str) -> dict[str, Any]:
        """What the program has under the names that `tests` lacks.

        Builtins and modules are Python's own, whatever the program calls so: its `abs` could make all differences 0.
        But where the program has no other name that the tests use, the one that it defines is what they are about.
        """
        free = free_names(tests)
        values, shadowing = self._ask_names(free - PYTHON), self._ask_names(free & PYTHON)
        if not values and len(shadowing) == 1:
            return shadowing
        return values | {name: importlib.import_module(name) for name in shadowing.keys() & solver.MODULES}

    def _ask_names(self, names: set[str]) -> dict[str, Any]:
        self._modules_may_come = True
        answer = self.ask("names", *sorted(names))
        self._modules_may_come = False
        if not isinstance(answer, dict):
            raise LostError
        return answer

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._hear, min(count, 1 << 20))
            if not part:
                raise LostError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def ask(self, *request: Any) -> Any:
        try:
            data = wire.dumps(request, self._number)
        except RecursionError:  # it has come from the program, in most cases
            raise LostError from None
        try:
            data = len(data).to_bytes(4, "big") + data
            while data:
                data = data[os.write(self._tell, data) :]
            length = int.from_bytes(self._take(4), "big")
            if length > wire.MESSAGE_BYTES:
                raise LostError
            reply = wire.loads(self._take(length), self._received)
            kind, *rest = reply
            if kind == "value":
                value, changed = rest
                if changed is not None:
                    for own, new in zip(request[2], changed, strict=True):
                        _become(own, new)
                return value
            name, text, lines = rest
            error = solver.EXCEPTIONS[name]
        except (OSError, ValueError, TypeError, LookupError):
            raise LostError from None
        sys.stderr.write(f"{lines}\nThe above came from the program, called by these tests:\n\n")
        raise error(text)

    def believe(self, *request: Any) -> bool:
        """What the program says of objects of its own."""
        self.believed = True
        return self.ask(*request) is True

    @staticmethod
    def _number(value: Any) -> int:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        raise InseparableError

    def _received(self, handle: Any) -> Any:
        name = handle.get("module")
        if name is not None:
            if name not in solver.MODULES or not self._modules_may_come:
                raise LostError
            return importlib.import_module(name)
        return Remote(self, handle["number"])


def _become(own: Any, new: Any) -> None:
    """Change an argument of a call as the call has changed it."""
    if type(own) is not type(new):
        return
    if isinstance(own, list | bytearray):
        if own != new:
            own[:] = new
    elif isinstance(own, dict | set):
        own.clear()
        own.update(new)


class Remote:
    """An object of the program's. Only what gives values is asked of it: it is equal to none, less than none."""

    def __init__(self, peer: _Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._peer.ask("call", self, list(positional), named)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Remote) and self._peer.believe("equal", self, other))

    def __hash__(self) -> int:
        return id(self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._peer.believe("instance", value, self)

    def __len__(self) -> int:
        return self._peer.ask("len", self)

    def __iter__(self) -> Any:
        return self._peer.ask("iter", self)

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("put", self, key, value)

    def __str__(self) -> str:
        return self._peer.ask("str", self)

    def __repr__(self) -> str:
        return self._peer.ask("repr", self)

    def __bool__(self) -> bool:
        return True

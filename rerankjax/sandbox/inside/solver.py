"""Runs inside the box: a Python program that answers the calls of tests that run elsewhere (examiner.py).

The tests' text and the values they expect never come here, and all that leaves is data. A request is [operation,
argument, ...]; the answer ["value", value, arguments that the call has changed] or ["raised", class, text, traceback].
"""

import builtins
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from rerankjax.sandbox.inside import program, wire

_MODULES = """abc bisect cmath collections copy datetime decimal fractions functools heapq itertools json math operator
random re statistics string sys time typing"""
MODULES = frozenset(_MODULES.split())
EXCEPTIONS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}


def run(source: str, report: Callable[[str], None], hear: int, tell: int) -> int:
    """Run `source` as __main__, then answer until the tests have ended. Reports a source that fails; the exit code."""
    answer = _answerer(hear, tell)
    ends: list[str] = []
    code = program.run(source, "", ends.append)
    if ends == ["passed"]:
        try:
            answer(sys.modules["__main__"].__dict__)
            sys.stdout.flush()
        except SystemExit as error:
            return program.exit_code(error)
    elif ends:
        report(ends[0])
    return code


def _answerer(hear: int, tell: int) -> Callable[[dict[str, Any]], None]:
    read, write = os.read, os.write
    objects: list[Any] = []

    def take(count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = read(hear, min(count - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return data

    def handle(value: Any) -> dict[str, Any]:
        if isinstance(value, types.ModuleType) and value.__name__ in MODULES:
            return {"module": value.__name__}
        objects.append(value)
        return {"number": len(objects) - 1, "callable": callable(value), "name": type(value).__name__}

    def do(names: dict[str, Any], operation: str, *arguments: Any) -> Any:
        match operation:
            case "names":
                return {name: names[name] for name in arguments if name in names}
            case "call":
                function, positional, named = arguments
                return function(*positional, **named)
            case "get":
                return getattr(*arguments)
            case "set":
                return setattr(*arguments)
            case "equal":
                return bool(arguments[0] == arguments[1])
            case "instance":
                return isinstance(*arguments)
            case "item":
                return arguments[0][arguments[1]]
            case "put":
                arguments[0][arguments[1]] = arguments[2]
                return None
            case "next":
                return next(arguments[0])
            case _:  # len, iter, str, repr
                return getattr(builtins, operation)(*arguments)

    def answer(names: dict[str, Any]) -> None:
        while (length := take(4)) is not None:
            request = take(int.from_bytes(length, "big"))
            if request is None:
                return
            asked = wire.loads(request, objects.__getitem__)
            given = wire.dumps(asked[2], handle) if asked[0] == "call" else b""
            try:
                value = do(names, *asked)
                changed = asked[2] if given and wire.dumps(asked[2], handle) != given else None
                reply = wire.dumps(["value", value, changed], handle)
            except SystemExit:
                raise
            except BaseException as error:
                shown = error.__traceback__
                while shown and shown.tb_frame.f_code.co_filename != "program.py":
                    shown = shown.tb_next
                lines = "".join(traceback.format_exception(type(error), error, shown))
                kind = next(c for c in (*type(error).__mro__, Exception) if c in EXCEPTIONS.values())
                reply = wire.dumps(["raised", kind.__name__, str(error), lines[-4096:]], handle)
            data = len(reply).to_bytes(4, "big") + reply
            while data:
                data = data[write(tell, data) :]

    return answer

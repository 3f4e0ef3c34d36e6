"""Runs inside the box: a Python program and its tests, in a fork of the warm interpreter."""

import linecache
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

INSIDE = __file__.rpartition("/")[0]


class Unjudged(BaseException):
    """Passes through `run` without becoming a verdict."""


def exit_code(error: SystemExit) -> int:
    """The process's exit code for `error`; says what it has to say."""
    sys.stdout.flush()
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def run(source: str, tests: str, report: Callable[[str], None], *, names: Callable[[], dict[str, Any]] = dict) -> int:
    """Run `source`, then `tests`, in one fresh __main__. Reports how that ended and returns the exit code.

    names: gives what else __main__ has. Compiled apart from each other, a source that ends inside a string swallows
    no test.
    """
    main = types.ModuleType("__main__")
    main.__dict__["__file__"] = f"{sys.path[0]}/program.py"
    sys.modules["__main__"] = main
    try:
        compiled = []
        for name, text in {"program.py": source.removeprefix("\ufeff"), "tests.py": tests}.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            compiled.append(compile(text, name, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, lone surrogates
        traceback.print_exc(limit=0)
        report("compile error")
        return 1
    try:
        main.__dict__.update(names())
        for code in compiled:
            exec(code, main.__dict__)
    except SystemExit as error:
        return exit_code(error)
    except Unjudged:
        raise
    except BaseException as error:
        kinds = {AssertionError: "failed", MemoryError: "memory limit"}
        kind = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "runtime error")
        try:
            sys.stdout.flush()
            shown = traceback.TracebackException.from_exception(error)
            for frame in [frame for frame in shown.stack if frame.filename.startswith(INSIDE)]:
                shown.stack.remove(frame)
            print("".join(shown.format()), end="", file=sys.stderr)
        finally:
            report(kind)
        return 1
    sys.stdout.flush()
    report("passed")
    return 0

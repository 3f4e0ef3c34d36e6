"""Runs inside the box: a Python program and its tests, in a fork of the warm interpreter."""

import linecache
import sys
import traceback
import types
from collections.abc import Callable


def run(source: str, tests: str, report: Callable[[str], None], *, quiet: bool) -> int:
    """Run `source`, then `tests`, in one fresh __main__. Reports how that ended and returns the exit code.

    quiet: print no traceback, for no one reads a control's. Compiled apart from each other, a source that ends inside a
    string swallows no test.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        compiled = []
        for name, text in {"program.py": source, "tests.py": tests}.items():
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            compiled.append(compile(text, name, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, lone surrogates
        if not quiet:
            traceback.print_exc(limit=0)
        report("compile error")
        return 1
    try:
        for code in compiled:
            exec(code, main.__dict__)
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        sys.stdout.flush()
        return exit_code & 0xFF
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this frame
        kinds = {AssertionError: "failed", MemoryError: "memory limit"}
        kind = next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "runtime error")
        try:
            sys.stdout.flush()
            if not quiet:
                traceback.print_exception(error)
        finally:
            report(kind)
        return 1
    sys.stdout.flush()
    report("passed")
    return 0

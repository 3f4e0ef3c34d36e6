"""Runs inside the box: compilers, interpreters and compiled programs, one step after the other.

The confined process is process 1 of its PID namespace and starts the steps' programs, which thus see ordinary signals
and an ordinary parent. It tells the server how each step ended over a pipe that no program has.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
from typing import Any

PR_SET_DUMPABLE = 4
TELL, HEAR = 200, 201  # a program's, to and from the host: out of the way of those a Bash program takes


def run(
    body: dict[str, Any], ends: tuple[int, int, int], outputs: tuple[int, ...], memory_bytes: int, *, contained: bool
) -> None:
    """Write `body`'s files here and run its steps until one fails; the status pipe gets a line of JSON for each.

    ends: standard input, TELL and HEAR of the step that is the program; what compiles it has none of them.
    """
    stdout, stderr, status = outputs
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # who could open /proc/1/fd could write records
    for name, text in body["files"].items():
        with open(name, "wb") as file:
            file.write(text.encode(body["encodings"].get(name, "utf-8"), errors="replace"))
    null = os.open("/dev/null", os.O_RDWR)
    for step in body["steps"]:
        os.write(status, b"\n")  # the server starts its clock anew
        if step["limit_address_space"]:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        stdin, tell, hear = ends if step["stage"] == "run" else (null, null, null)
        fds = {0: stdin, 1: stdout, 2: stderr, TELL: tell, HEAR: hear}
        record = _run(step, [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in fds.items()], contained)
        os.write(status, json.dumps(record).encode() + b"\n")
        if record["exit_code"] != 0:
            break


def _run(step: dict[str, Any], actions: list[tuple[int, int, int]], contained: bool) -> dict[str, Any]:
    # Python ignores SIGPIPE and SIGXFSZ, and what it starts would, too.
    defaults = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
    argv = step["argv"]
    environment = dict(os.environ) | step["environment"]
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsigdef=defaults, setsid=contained)
    _, ended, used = os.wait4(pid, 0)
    if contained:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # as process 1: all in this namespace
    with contextlib.suppress(ChildProcessError):
        while contained:
            os.wait()
    code = os.waitstatus_to_exitcode(ended)
    return {
        "stage": step["stage"],
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }

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
DONE = 3  # the file descriptor on which a program's harness says that the last test has run
SAID_BYTES = 256
PIPE_BYTES = 1 << 16


def run(body: dict[str, Any], outputs: tuple[int, ...], memory_bytes: int, *, contained: bool) -> None:
    """Write `body`'s files here and run its steps until one fails; the status pipe gets a line of JSON for each."""
    stdout, stderr, status = outputs
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # who could open /proc/1/fd could write records
    for name, text in body["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding=body["encodings"].get(name, "utf-8"), errors="replace", newline="") as file:
            file.write(text)
    null = os.open("/dev/null", os.O_RDWR)
    for step in body["steps"]:
        os.write(status, b"\n")  # the server starts its clock anew
        if step["limit_address_space"]:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        stdin = holding(body["stdin"].encode(errors="replace"))
        record = _run(step, (stdin, *((null, null) if step["quiet"] else (stdout, stderr))), contained)
        os.close(stdin)
        os.write(status, json.dumps(record).encode() + b"\n")
        if record["exit_code"] != 0:
            break


def holding(data: bytes) -> int:
    """A file descriptor to read `data` from: once, where a pipe holds that much."""
    if len(data) <= PIPE_BYTES:
        stdin, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        return stdin
    file = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    while data:
        data = data[os.write(file, data) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _run(step: dict[str, Any], ends: tuple[int, ...], contained: bool) -> dict[str, Any]:
    done, theirs = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((*ends, theirs))]
    # Python ignores SIGPIPE and SIGXFSZ, and what it starts would, too.
    defaults = (signal.SIGPIPE, signal.SIGXFSZ)
    argv = step["argv"]
    environment = dict(os.environ) | step["environment"]
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsigdef=defaults, setsid=contained)
    os.close(theirs)
    _, ended, used = os.wait4(pid, 0)
    if contained:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # as process 1: all in this namespace
    with contextlib.suppress(ChildProcessError):
        while contained:
            os.wait()
    os.set_blocking(done, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(done, SAID_BYTES)
    os.close(done)
    code = os.waitstatus_to_exitcode(ended)
    return {
        "stage": step["stage"],
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "said": said.decode("latin-1"),
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }

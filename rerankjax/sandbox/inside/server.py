"""Runs inside the box: a warm interpreter that forks a confined child for each program and watches over it.

Over one socket (its standard input and output) comes, for each program, 4 bytes of length and a JSON body. Only the
child reads it, so that no later child can find it in memory; the child is forked and confined while the host is still
busy. Back goes 4 bytes of length and a JSON reply. A child that fails before it was confined ends the server: the host
then starts another.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time

from rerankjax.sandbox.inside import confine, program

WATCH_SECONDS = 0.1
TAIL_BYTES = 4096
READY, READY_KEEP_OUTPUT = b"!", b"+"
# Imported before the fork, since programs import little else. Each page that a fork touches is a fault: what runs code
# at every fork (threading, random) costs all programs more than it saves the few.
WARM = (
    "abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools "
    "hashlib heapq itertools math operator re string sys textwrap time typing unicodedata"
)
Limits = dict[str, float]


def read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def child(
    requests: int, outputs: tuple[int, ...], limits: Limits, filter_bpf: ctypes.Array[ctypes.c_char], nonce: bytes
) -> None:
    """Confine this process, then wait for a program and be it. Does not return."""
    stdout, stderr, status = outputs
    confine.confine(limits, filter_bpf)
    try:
        body = json.loads(read_exactly(requests, int.from_bytes(read_exactly(requests, 4), "big")))
    except EOFError:
        os._exit(0)
    if body["stdin"]:
        stdin = os.open("/tmp/.stdin", os.O_RDWR | os.O_CREAT, 0o600)
        os.unlink("/tmp/.stdin")
        write_all(stdin, body["stdin"].encode(errors="replace"))
        os.lseek(stdin, 0, os.SEEK_SET)
        os.dup2(stdin, 0)
    for fd, target in ((stdout, 1), (stderr, 2), (status, 3)):
        os.dup2(fd, target, inheritable=target != 3)
    os.closerange(4, 1 << 16)
    sys.path[0] = "/tmp"
    sys.argv[:] = ["program.py"]
    sys.setrecursionlimit(sys.getrecursionlimit() + 4)  # for the frames below the program's first
    os.write(3, READY_KEEP_OUTPUT if body["keep_output"] else READY)
    code = program.run(body["source"], body["tests"], lambda kind: write_all(3, nonce + kind.encode()))
    os._exit(code)


def usage() -> tuple[int, float]:
    """Bytes of memory and CPU seconds of all processes but this server and the box's init.

    Memory is the proportional set size: pages shared with the warm interpreter count once, not once a process.
    """
    memory, ticks = 0, 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (1, os.getpid()):
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                ticks += sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
            with open(f"/proc/{name}/smaps_rollup", "rb") as file:
                memory += next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
        except (OSError, StopIteration):  # it has just ended
            continue
    return memory, ticks / os.sysconf("SC_CLK_TCK")


class EndedError(Exception):
    """The host has closed the socket."""


def await_ready(status: int, pid: int) -> bool:
    """Whether the child, which has just begun on a program, asks for all its output to be kept."""
    ready = os.read(status, 1)
    if ready in (READY, READY_KEEP_OUTPUT):
        return ready == READY_KEEP_OUTPUT
    _, ended = os.waitpid(pid, 0)
    if ready == b"" and ended == 0:
        raise EndedError
    raise SystemExit(f"a child was not confined: {ended}, {os.read(status, 999).decode(errors='replace')}")


def watch(pid: int, requests: int, pipes: tuple[int, ...], limits: Limits, keep: int) -> tuple[str, list[bytearray]]:
    """Wait until `pid` ends or must be ended. Returns why it was killed (or ""), and what came through the pipes.

    Raises EndedError, which ends the box, when the host goes away meanwhile.
    """
    held = [bytearray() for _ in pipes]
    into = dict(zip(pipes, held, strict=True))
    poller = select.poll()
    ended = os.pidfd_open(pid)
    for fd in (*pipes, ended):
        poller.register(fd, select.POLLIN)
    poller.register(requests, 0)  # for POLLHUP alone
    killed, written, start = "", 0, time.monotonic()
    look = start + WATCH_SECONDS
    alive = True
    while alive:
        events = poller.poll(max(0.0, look - time.monotonic()) * 1000)
        ready = [fd for fd, _ in events]
        if requests in ready:
            raise EndedError
        alive = ended not in ready
        # Once the first process has ended so has all it started, and what the pipes hold is all there will be.
        for fd in ready if alive else list(into):
            while data := read_now(fd):
                into[fd] += data
                written += len(data)
                del into[fd][: max(0, len(into[fd]) - keep) if len(into[fd]) > 2 * keep else 0]
                if alive:
                    break
            if data == b"":
                poller.unregister(fd)
                del into[fd]
        now = time.monotonic()
        if not killed and written > limits["output_bytes"]:
            killed = "output limit"
        if not killed and alive and now >= look:
            memory, cpu = usage()
            if memory > limits["memory_bytes"]:
                killed = "memory limit"
            elif cpu > limits["cpu_seconds"] or now - start > limits["wall_seconds"]:
                killed = "timeout"
            look = time.monotonic() + WATCH_SECONDS
        if killed and alive:
            os.kill(pid, signal.SIGKILL)
    os.close(ended)
    return killed, held


def read_now(fd: int) -> bytes | None:
    """What a pipe holds: b"" at its end, None where it holds nothing now."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None


def serve_one(
    requests: int, replies: int, limits: Limits, filter_bpf: ctypes.Array[ctypes.c_char], own_namespace: int
) -> None:
    nonce = os.urandom(16)
    ours, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
    pid = confine.fork_in_new_pid_namespace(own_namespace)
    if not pid:
        try:
            child(requests, theirs, limits, filter_bpf, nonce)
        except BaseException as error:
            os.write(theirs[2], b"?" + repr(error).encode()[:999])
        finally:
            os._exit(70)
    for fd in theirs:
        os.close(fd)
    keep_output = await_ready(ours[2], pid)
    start = time.monotonic()
    for fd in ours:
        os.set_blocking(fd, False)
    keep = int(limits["output_bytes"]) if keep_output else TAIL_BYTES
    killed, (stdout, stderr, status) = watch(pid, requests, ours, limits, keep)
    for fd in ours:
        os.close(fd)
    _, ended, rusage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(ended)
    reply = {
        "killed": killed,
        "said": status[16:].decode(errors="replace") if status[:16] == nonce else "",
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "stdout": stdout[-keep:].decode(errors="replace"),
        "stderr": stderr[-TAIL_BYTES:].decode(errors="replace"),
        "wall_seconds": time.monotonic() - start,
        "cpu_seconds": rusage.ru_utime + rusage.ru_stime,
    }
    data = json.dumps(reply).encode()
    write_all(replies, len(data).to_bytes(4, "big") + data)


def main() -> None:
    limits, rules = json.loads(sys.argv[1]), bytes.fromhex(sys.argv[2])
    filter_bpf = ctypes.create_string_buffer(rules, len(rules))
    requests, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in WARM.split():
        __import__(name)
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()
    confine.lock_server(limits)
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EndedError):
        while True:
            serve_one(requests, replies, limits, filter_bpf, own_namespace)


if __name__ == "__main__":
    main()

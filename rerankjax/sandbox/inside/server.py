"""Runs inside the box: a warm interpreter that forks a confined child for each program and watches over it.

Over one socket (its standard input and output) comes, for each program: 4 bytes of length and a JSON header for this
server, then a body that only the child reads, so that no later child can find it in memory. Back goes: 4 bytes of
length and a JSON reply. A child that fails before it was confined ends the server: the host then starts another.
"""

import gc
import json
import os
import resource
import select
import sys
import time

from rerankjax.sandbox.inside import confine, program

WATCH_SECONDS = 0.1
TAIL_BYTES = 4096
READY = b"!"
# Imported before the fork, since programs import little else.
WARM = (
    "abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools "
    "hashlib heapq itertools math operator queue random re statistics string sys textwrap time typing unicodedata"
)
Header = dict[str, float]


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


def child(requests: int, outputs: list[int], header: Header, filter_bpf: bytes, nonce: bytes) -> None:
    """Confine this process, then be the program. Does not return."""
    body = json.loads(read_exactly(requests, int(header["body_bytes"])))
    stdout, stderr, status = outputs
    confine.confine(header, filter_bpf)
    stdin = os.open("/tmp/.stdin", os.O_RDWR | os.O_CREAT, 0o600)
    os.unlink("/tmp/.stdin")
    write_all(stdin, body["stdin"].encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    for fd, target in ((stdin, 0), (stdout, 1), (stderr, 2), (status, 3)):
        os.dup2(fd, target, inheritable=target != 3)
    os.closerange(4, 1 << 16)
    os.write(3, READY)
    sys.path[0] = "/tmp"
    sys.argv[:] = ["program.py"]
    sys.setrecursionlimit(sys.getrecursionlimit() + 4)  # for the frames below the program's first
    code = program.run(
        body["source"], body["tests"], body["exit_is_end"], lambda kind: write_all(3, nonce + kind.encode())
    )
    os._exit(code)


def usage(first: int) -> tuple[int, float]:
    """Bytes of memory and CPU seconds of all processes but this server and the box's init (`first` is not yet reaped).

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


def watch(pid: int, pipes: list[int], header: Header) -> tuple[str, list[bytearray], bytes]:
    """Wait until `pid` ends or must be ended. Returns why it was killed (or ""), its output, and its status."""
    stdout, stderr, status = bytearray(), bytearray(), bytearray()
    into = dict(zip(pipes, (stdout, stderr, status), strict=True))
    keep = int(header["output_bytes"] if header["keep_output"] else TAIL_BYTES)
    poller = select.poll()
    ended = os.pidfd_open(pid)
    for fd in (*pipes, ended):
        poller.register(fd, select.POLLIN)
    killed, written, start = "", 0, time.monotonic()
    look = start + WATCH_SECONDS
    alive = True
    while alive:
        events = poller.poll(max(0.0, look - time.monotonic()) * 1000)
        alive = all(fd != ended for fd, _ in events)
        # Once the first process has ended so has all it started, and what the pipes hold is all there will be.
        for fd in [fd for fd, _ in events if fd != ended] if alive else list(into):
            while True:
                try:
                    data = os.read(fd, 1 << 16)
                except BlockingIOError:
                    break
                if not data:
                    poller.unregister(fd)
                    del into[fd]
                    break
                into[fd] += data
                written += len(data)
                if into[fd] is status:
                    del status[256:]
                elif len(into[fd]) > 2 * keep:
                    del into[fd][:-keep]
                if alive:
                    break
        now = time.monotonic()
        if not killed and written > header["output_bytes"]:
            killed = "output limit"
        if not killed and alive and now >= look:
            memory, cpu = usage(pid)
            if memory > header["memory_bytes"]:
                killed = "memory limit"
            elif cpu > header["cpu_seconds"] or now - start > header["wall_seconds"]:
                killed = "timeout"
            look = time.monotonic() + WATCH_SECONDS
        if killed and alive:
            os.kill(pid, 9)
    os.close(ended)
    return killed, [stdout[-keep:], stderr[-TAIL_BYTES:]], bytes(status)


def serve_one(requests: int, replies: int, header: Header, filter_bpf: bytes, own_namespace: int) -> None:
    start = time.monotonic()
    nonce = os.urandom(16)
    ours, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
    pid = confine.fork_in_new_pid_namespace(own_namespace)
    if not pid:
        try:
            child(requests, list(theirs), header, filter_bpf, nonce)
        except BaseException as error:
            os.write(theirs[2], repr(error).encode()[:200])
        finally:
            os._exit(70)
    for fd in theirs:
        os.close(fd)
    for fd in ours:
        os.set_blocking(fd, False)
    killed, (stdout, stderr), status = watch(pid, list(ours), header)
    for fd in ours:
        os.close(fd)
    _, ended, rusage = os.wait4(pid, 0)
    if not status.startswith(READY):
        raise SystemExit(f"a child was not confined: {status.decode(errors='replace') or ended}")
    code = os.waitstatus_to_exitcode(ended)
    reply = {
        "killed": killed,
        "said": status[17:].decode(errors="replace") if status[1:17] == nonce else "",
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
        "wall_seconds": time.monotonic() - start,
        "cpu_seconds": rusage.ru_utime + rusage.ru_stime,
    }
    data = json.dumps(reply).encode()
    write_all(replies, len(data).to_bytes(4, "big") + data)


def main() -> None:
    filter_bpf = bytes.fromhex(sys.argv[1])
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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    confine.lock_server()
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    gc.collect()
    gc.freeze()
    while True:
        try:
            size = int.from_bytes(read_exactly(requests, 4), "big")
        except EOFError:
            return
        serve_one(requests, replies, json.loads(read_exactly(requests, size)), filter_bpf, own_namespace)


if __name__ == "__main__":
    main()

"""Runs inside the box: a warm interpreter that forks a confined child for each program and watches over it.

Over one socket (its standard input and output) comes, for each program, 4 bytes of length and a JSON body. Only the
child reads it, so that no later child can find it in memory; the child is forked and confined while the host is still
busy. Back goes 4 bytes of length and a JSON reply, which says "spent" where no other program may run here. A child that
fails before it was confined ends the server: the host then starts another.

The child is a Python program itself, or runs the steps of another one (steps.py). In a box for PHP it is a fork of a
warm PHP instead (php/zygote.php), which speaks the same way.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import json
import linecache
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from rerankjax.sandbox.inside import confine, examiner, program, solver, steps, wire

WATCH_SECONDS = 0.1
TAIL_BYTES = 4096
PIPE_BYTES = 1 << 16
REHEARSALS = 20
HARNESS_SECONDS = 0.5  # of CPU, that a fork and its confinement may use
# What a child says when it has its program: whether all its output is kept, and whether it comes in steps.
READY = {b"!": (False, False), b"+": (True, False), b"s": (False, True), b"S": (True, True)}
HOST_GONE = b"."
# Imported before the fork, since programs import little else. Each page that a fork touches is a fault, and each page
# of the parent is copied in its table: what runs code at every fork (threading, random), or is large (hashlib), costs
# all programs more than it saves the few.
WARM = (
    "abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools "
    "heapq itertools math operator re string sys textwrap time typing unicodedata"
)
Limits = dict[str, float]
OWN_PROCESSES = {1, os.getpid()}  # of the box


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
    host: socket.socket,
    outputs: tuple[int, ...],
    limits: Limits,
    filter_bpf: ctypes.Array[ctypes.c_char] | None,
    nonce: bytes,
) -> None:
    """Confine this process, then wait for a program and be it. Does not return."""
    os.setsid()
    confine.confine(limits, filter_bpf)
    # Opened anew: what a program sets on its end of a pipe (node: not to block) must not be the next one's.
    stdout, stderr, status = outputs = tuple(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY) for fd in outputs)
    try:
        with host:
            length, ends, _, _ = socket.recv_fds(host, 4, 3, socket.MSG_CMSG_CLOEXEC)
            if not length:
                raise EOFError
            size = int.from_bytes(length + read_exactly(host.fileno(), 4 - len(length)), "big")
            body = json.loads(read_exactly(host.fileno(), size))
    except EOFError:
        os.write(status, HOST_GONE)
        os._exit(0)
    stdin, tell, hear = ends
    if "steps" in body:
        os.write(status, b"S" if body["keep_output"] else b"s")
        steps.run(body, (stdin, tell, hear), outputs, int(limits["memory_bytes"]), contained=filter_bpf is not None)
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_AS, (int(limits["memory_bytes"]),) * 2)
    fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 6) for fd in (stdin, stdout, stderr, status, tell, hear)]
    for target, fd in enumerate(fds):
        os.dup2(fd, target, inheritable=target < 3)
    os.closerange(6, 1 << 16)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path[0] = os.getcwd()
    sys.argv[:] = ["program.py"]
    sys.setrecursionlimit(sys.getrecursionlimit() + 4)  # for the frames below the program's first
    os.write(3, b"+" if body["keep_output"] else b"!")

    def report(kind: str) -> None:
        write_all(3, nonce + kind.encode())

    if "source" in body:
        file = os.open("program.py", os.O_CREAT | os.O_WRONLY, 0o644)
        write_all(file, body["source"].encode(errors="replace"))
        os.close(file)
    if "source" not in body:
        code = examiner.run(body["tests"], report, hear=5, tell=4)
    elif "tests" not in body:
        code = solver.run(body["source"], report, hear=5, tell=4)
    else:
        code = program.run(body["source"], body["tests"], report)
    os._exit(code)


@dataclasses.dataclass(frozen=True)
class Child:
    """A confined process that runs a program, itself or in steps: process 1 of its PID namespace."""

    pid: int
    ended: int  # a pidfd
    contained: bool
    reap: Callable[[], tuple[int, float]]  # its exit code, negative for a signal, and CPU seconds with all it started

    def kill(self) -> None:
        if self.contained:
            os.kill(self.pid, signal.SIGKILL)  # and the kernel all else in its namespace
        else:
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> tuple[int, float]:
        os.close(self.ended)
        if not self.contained:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return self.reap()

    def usage(self) -> tuple[int, float]:
        """Bytes of memory and CPU seconds of all processes here but this server's own and the box's init.

        Memory is the proportional set size: pages shared with the warm interpreter count once, not once a process.
        Uncontained, other programs' processes cannot be told apart: both are 0.
        """
        memory, ticks = 0, 0
        for name in os.listdir("/proc") if self.contained else ():
            if not name.isdigit() or int(name) in OWN_PROCESSES:
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    ticks += sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
                with open(f"/proc/{name}/smaps_rollup", "rb") as file:
                    memory += next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
                with open(f"/proc/{name}/status", "rb") as file:  # page tables
                    memory += next(int(line.split()[1]) for line in file if line.startswith(b"VmPTE:")) * 1024
            except (OSError, StopIteration):  # it has just ended
                continue
        return memory, ticks / os.sysconf("SC_CLK_TCK")


def metered(limits: Limits) -> float:
    """CPU seconds of all that ever ran in this box's cgroup, but this server; 0 where it has none."""
    if limits["meter"] < 0:
        return 0.0
    try:
        return int(os.pread(int(limits["meter"]), 64, 0).split()[1]) / 1e6 - time.process_time()
    except (OSError, LookupError, ValueError):
        return 0.0


class EndedError(Exception):
    """The host has closed the socket."""


def await_ready(status: int, ended: int) -> tuple[bool, bool]:
    """What the child says as it begins on a program (see READY)."""
    poller = select.poll()
    poller.register(status, select.POLLIN)
    poller.register(ended, select.POLLIN)
    poller.poll()
    ready = read_now(status, 1)
    if ready in READY:
        return READY[ready]
    if ready == HOST_GONE:
        raise EndedError
    raise SystemExit(f"a child was not confined: {(read_now(status) or b'').decode(errors='replace')}")


def watch(
    child: Child, requests: int, pipes: tuple[int, ...], limits: Limits, keep: int, *, in_steps: bool
) -> tuple[str, float, float, list[bytearray]]:
    """Wait until the child ends or must be ended.

    Returns why it was killed (or ""), the CPU seconds last seen, what the cgroup says of the last step beyond what ends
    of processes can explain, and what came through the pipes.

    Each step has the CPU and wall time of a program. Raises EndedError, which ends the box, when the host goes away.
    """
    held = [bytearray() for _ in pipes]
    into = dict(zip(pipes, held, strict=True))
    poller = select.poll()
    for fd in (*pipes, child.ended):
        poller.register(fd, select.POLLIN)
    poller.register(requests, 0)  # for POLLHUP alone
    killed, written, start, before, cpu, lines = "", 0, time.monotonic(), 0.0, 0.0, 0
    metered_before = metered(limits)
    look = start + WATCH_SECONDS
    alive = True
    while alive:
        ready = [fd for fd, _ in poller.poll(max(0.0, look - time.monotonic()) * 1000)]
        if requests in ready:
            raise EndedError
        alive = child.ended not in ready
        # Once the first process has ended so has all it started, and what the pipes hold is all there will be.
        for fd in ready if alive else pipes:
            while fd in into and (data := read_now(fd)):
                into[fd] += data
                written += len(data)
                del into[fd][: max(0, len(into[fd]) - keep) if len(into[fd]) > 2 * keep else 0]
                if alive:
                    break
        now = time.monotonic()
        if in_steps and lines != held[2].count(b"\n"):
            lines, start, before, metered_before = held[2].count(b"\n"), now, child.usage()[1], metered(limits)
        if not killed and written > limits["output_bytes"]:
            killed = "output limit"
        if not killed and alive and now >= look:
            memory, cpu = child.usage()
            if memory > limits["memory_bytes"]:
                killed = "memory limit"
            else:
                used = max(cpu - before, metered(limits) - metered_before - HARNESS_SECONDS)
                if used > limits["cpu_seconds"] or now - start > limits["wall_seconds"]:
                    killed = "timeout"
            look = time.monotonic() + WATCH_SECONDS
        if killed and alive:
            child.kill()
    return killed, cpu - before, metered(limits) - metered_before - HARNESS_SECONDS, held


def network_used() -> bool:
    """Whether anything has gone over this box's loopback: ports may be taken for minutes, so no program may follow."""
    with open("/proc/net/dev") as file:
        return any(line.split()[:2] != ["lo:", "0"] for line in file if line.strip().startswith("lo:"))


def read_now(fd: int, count: int = 1 << 16) -> bytes | None:
    """What a pipe holds; None where it holds nothing now."""
    try:
        return os.read(fd, count)
    except BlockingIOError:
        return None


def serve_one(
    fork: Callable[[bytes], Child], requests: int, replies: int, ours: tuple[int, ...], limits: Limits
) -> None:
    nonce = os.urandom(16)
    child = fork(nonce)
    keep_output, in_steps = await_ready(ours[2], child.ended)
    start = time.monotonic()
    keep = int(limits["output_bytes"]) if keep_output else TAIL_BYTES
    try:
        killed, cpu_seconds, hidden_seconds, (stdout, stderr, status) = watch(
            child, requests, ours, limits, keep, in_steps=in_steps
        )
    except EndedError:
        child.kill()
        raise
    code, waited_for = child.wait()
    for fd in ours:  # the next program finds them as this one did
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.fchmod(fd, 0o600)
    message = status if in_steps else status[16:] if status[:16] == nonce else b""
    reply = {
        "spent": child.contained and network_used(),
        "killed": killed,
        "said": message.decode(errors="replace"),
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "stdout": stdout[-keep:].decode(errors="replace"),
        "stderr": stderr[-TAIL_BYTES:].decode(errors="replace"),
        "wall_seconds": time.monotonic() - start,
        "metered_seconds": hidden_seconds,
        "cpu_seconds": max(
            cpu_seconds, waited_for, hidden_seconds
        ),  # no process waited for children that were killed with their parent
    }
    data = json.dumps(reply).encode()
    write_all(replies, len(data).to_bytes(4, "big") + data)


def fork_python(
    requests: int, theirs: tuple[int, ...], limits: Limits, filter_bpf: ctypes.Array[ctypes.c_char] | None
) -> Callable[[bytes], Child]:
    """Forks of this very interpreter."""
    rehearse()
    host = socket.socket(fileno=requests)  # for all of them: each would fault to make its own
    own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)

    def fork(nonce: bytes) -> Child:
        contained = filter_bpf is not None
        pid = confine.fork_in_new_pid_namespace(own_namespace) if contained else os.fork()
        if not pid:
            try:
                child(host, theirs, limits, filter_bpf, nonce)
            except BaseException as error:
                os.write(theirs[2], b"?" + repr(error).encode()[:999])
            finally:
                os._exit(70)

        def reap() -> tuple[int, float]:
            _, status, used = os.wait4(pid, 0)
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

        return Child(pid, os.pidfd_open(pid), contained, reap)

    return fork


def fork_php(
    command: list[str], requests: int, theirs: tuple[int, ...], limits: Limits, rules: bytes
) -> Callable[[bytes], Child]:
    """Forks of a warm PHP, which takes a line for each and answers with one (php/zygote.php)."""
    import subprocess  # which runs code at every fork: not where Python programs are forked

    setup = {"requests": requests, "outputs": theirs, "limits": limits, "filter": rules.hex()}
    zygote = subprocess.Popen(
        [*command, json.dumps(setup)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(requests, *theirs)
    )
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    if rules:
        confine.no_more_exec()
    OWN_PROCESSES.add(zygote.pid)
    lines, answers = zygote.stdin, zygote.stdout

    def ask(line: bytes) -> bytes:
        lines.write(line + b"\n")
        lines.flush()
        answer = answers.readline()
        if not answer:
            raise SystemExit(f"the warm PHP process ended with exit code {zygote.wait()}")
        return answer

    def fork(nonce: bytes) -> Child:
        pid = int(ask(nonce.hex().encode()))

        def reap() -> tuple[int, float]:
            code, cpu_seconds = ask(b"reap").split()
            return int(code), float(cpu_seconds)

        return Child(pid, os.pidfd_open(pid), bool(rules), reap)

    return fork


def rehearse() -> None:
    """Run what every child runs: the interpreter specialises code that it has run, by writing into it.

    A child that did so itself would first have to copy each page.
    """
    main = sys.modules["__main__"]
    tests = "def check(f):\n    assert f([1, (2.0, 'a')], {3: {True}}) == 1\n\ncheck(solve)\n"
    for _ in range(REHEARSALS):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            data = json.dumps({"source": "", "tests": tests}).encode()
            socket.send_fds(ours, [len(data).to_bytes(4, "big")], (0,))
            ours.sendall(data)
            _, (end,), _, _ = socket.recv_fds(theirs, 4, 3, socket.MSG_CMSG_CLOEXEC)
            json.loads(read_exactly(theirs.fileno(), len(data)))
            os.close(end)
        wire.loads(wire.dumps(["call", [1, (2.0, "a")], {3: {True}}], str), int)
        program.run("def solve(a, b):\n    return 1\n", tests, lambda kind: None)
        examiner.free_names(tests)
    sys.modules["__main__"] = main
    linecache.clearcache()


def main() -> None:
    limits, rules, php = json.loads(sys.argv[1]), bytes.fromhex(sys.argv[2]), json.loads(sys.argv[3])
    if limits["meter"] >= 0:
        os.set_inheritable(limits["meter"], False)
    filter_bpf = ctypes.create_string_buffer(rules, len(rules)) if rules else None
    requests, replies = os.dup(0), os.dup(1)
    # Process 1 of a program's namespace gets no signal that it has no handler for.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in WARM.split():
        __import__(name)
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()
    if filter_bpf:
        confine.lock_server(limits, for_exec=bool(php))
    ours, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
    for fd in ours:
        os.set_blocking(fd, False)
    fork = fork_php(php, requests, theirs, limits, rules) if php else fork_python(requests, theirs, limits, filter_bpf)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EndedError):
        while True:
            serve_one(fork, requests, replies, ours, limits)


if __name__ == "__main__":
    main()

"""A box: bubblewrap around one warm interpreter (inside/server.py) that runs one program at a time, or one compiler."""

import contextlib
import functools
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rerankjax.sandbox import cgroup, seccomp, toolchains
from rerankjax.sandbox.conversation import MESSAGE_BYTES, Conversation, Listener, holding, pipe
from rerankjax.sandbox.verdict import Limits, SandboxError, Verdict

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
# CAP_SYS_ADMIN: unshare, mount and setns for each program; CAP_SETPCAP: drop capabilities; CAP_SYS_PTRACE: read the
# memory use of programs.
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SYS_PTRACE")
REPLY_GRACE_SECONDS = 30.0  # beyond the program's own wall limits, before the box counts as dead
FAST_MILLISECONDS = "1000"  # what needs longer gets a node of its own
STEPS = 2  # a program may be compiled, and run
WATCH_SECONDS = 0.5
COMPILER_LIFE = 2000  # programs
COMPILER_BYTES = 1 << 30  # a warm compiler holds more than a program may need
COMPILED_BYTES = 256 << 20
END_SECONDS = 5.0  # for what is not contained to end its programs
IN_BOX = "/sandbox/rerankjax/sandbox/inside"
CONFIGURATION = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/php", "/etc/mono", "/etc/java-17-openjdk")


class BoxDiedError(Exception):
    """The box ended or no longer answers; the message has what it last said."""


class LimitError(Exception):
    """A compiler passed a limit, and its box is closed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"sandbox: {name} is not on PATH; install it: apt-get install {package}")
    return path


@functools.cache
def _shared() -> dict[str, str]:
    """Host paths that are bind-mounted read-only into the box: path in the box -> path on the host."""
    base = pathlib.Path(sys.base_prefix)
    python = os.path.realpath(sys.executable)
    paths = ["/usr", *CONFIGURATION, python, str(toolchains.MADE), toolchains.NODE]
    paths += [str(base / lib) for lib in ("lib", "lib64") if (base / lib).is_dir()]
    paths.append(sysconfig.get_path("stdlib"))
    outside_usr = [p for p in paths if os.path.exists(p) and (p == "/usr" or not p.startswith("/usr/"))]
    own = {f"/etc/{path.name}": str(path) for path in sorted((toolchains.INSIDE / "etc").iterdir())}
    return {path: path for path in outside_usr} | own | {IN_BOX: str(toolchains.INSIDE)}


def kept() -> list[str]:
    """Host paths below /tmp that are bind-mounted into the box, if this project's environment is there."""
    return [path for path in _shared() if path.startswith("/tmp/")]


def _bubblewrap() -> list[str]:
    bwrap = _tool("bwrap", "bubblewrap")
    shared = _shared()
    outer: list[str] = []
    if os.geteuid() == 0:
        # The kernel does not count root's processes, so root becomes a user of no name and no other process.
        # That user may not be able to reach an interpreter below /root: root first binds it where all can.
        user = str(1_900_000_000 + secrets.randbelow(200_000_000))
        staged = {path: f"/tmp/{index}" for index, path in enumerate(shared)}
        outer = [bwrap, "--die-with-parent", "--dev-bind", "/", "/", "--perms", "0755", "--tmpfs", "/tmp"]
        for path, stage in staged.items():
            outer += ["--ro-bind", shared[path], stage]
        outer += ["--chdir", "/", "--", _tool("setpriv", "util-linux")]
        outer += [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--"]
        shared = staged
    inner = [bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--uid", "0", "--gid", "0"]
    inner += ["--hostname", "sandbox", "--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        inner += ["--cap-add", capability]
    inner.append("--clearenv")
    for name, value in ENVIRONMENT.items():
        inner += ["--setenv", name, value]
    for path, source in shared.items():
        inner += ["--ro-bind", source, path]
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            inner += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            inner += ["--ro-bind", f"/{name}", f"/{name}"]
    inner += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--chdir", "/sandbox"]
    inner += ["--remount-ro", "/dev", "--remount-ro", "/", "--"]
    return [*outer, *inner]


# The compilers that stay warm: each takes one source after the other and runs nothing of it, except "fast" (fast.js).
SERVICES: dict[str, Callable[[str], list[str]]] = {
    "javac": lambda inside: [
        *(toolchains.JAVA, *toolchains.JAVA_OPTIONS, "-Xmx512m", "-Xshare:auto"),
        *(
            "-cp",
            toolchains.JAVA_CLASSES,
            f"-Dprogram.classpath={toolchains.JAVATUPLES}:{toolchains.JAVA_CLASSES}",
            "rerankjax.Compiler",
        ),
    ],
    "tsc": lambda inside: [
        *(toolchains.NODE, "--max-old-space-size=640", f"{inside}/node/compiler.js", toolchains.TYPESCRIPT),
    ],
    "fast": lambda inside: [toolchains.NODE, "--max-old-space-size=640", f"{inside}/node/fast.js", FAST_MILLISECONDS],
    "mcs": lambda inside: ["/usr/bin/env", "MONO_PATH=/usr/lib/mono/4.5", toolchains.MONO, toolchains.CSHARP_COMPILER],
}
PHP = [toolchains.PHP, "-d", "ffi.enable=true", "-d", "display_errors=stderr", "-d", "log_errors=0"]


def _command(kind: str, limits: Limits, inside: str, contained: bool, meter: int) -> list[str]:
    # -S: the standard library and nothing that happens to be installed, so that verdicts agree between machines.
    command = [os.path.realpath(sys.executable), "-B", "-s", "-S", "-m"]
    if kind in SERVICES:
        command += ["rerankjax.sandbox.inside.service"]
        extra = SERVICES[kind](inside)
    else:
        command += ["rerankjax.sandbox.inside.server"]
        extra = [*PHP, f"{inside}/php/zygote.php"] if kind == "php" else []
    rules = seccomp.bpf().hex() if contained else ""
    settings = json.dumps(vars(limits) | {"kept": kept(), "meter": meter})
    return [*(_bubblewrap() if contained else []), *command, settings, rules, json.dumps(extra)]


class Box:
    """Starts on the first question, and anew on the first after `close`. One thread at a time.

    kind: "programs" for what inside/server.py runs itself or in steps, "tests" for the same, of Python's tests, "php",
        or one of SERVICES.
    contained: False runs it with the rights of this very process. See `rerankjax.sandbox.run`.
    """

    def __init__(self, limits: Limits, kind: str = "programs", *, contained: bool = True) -> None:
        self.limits = limits
        self.inside = IN_BOX if contained else str(toolchains.INSIDE)  # where a program finds this package's `inside`
        self._kind = kind
        self._contained = contained
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.cancelled = False
        self._compiled = 0

    def ask(
        self, body: dict[str, Any], *, stdin: str = "", word: bytes = b"", listen: Listener | None = None
    ) -> dict[str, Any]:
        """Run one program: the reply of inside/server.py to `body`. Raises BoxDiedError, with the box closed.

        word: what the program hears from the beginning. listen: takes each frame that the program tells, and says
        whether the program may continue.
        """
        with contextlib.ExitStack() as open_ends:
            tell, told = pipe(open_ends)
            hear, heard = pipe(open_ends)
            os.write(heard, word)
            self.send(body, (holding(stdin, open_ends), told, hear))
            return self.reply(Conversation(tell, heard, listen) if listen else None)

    def send(self, body: dict[str, Any], ends: tuple[int, int, int]) -> None:
        """Start one program, with `ends` as its standard input, where it tells and where it hears."""
        with self._broken_is_dead():
            if self._process is None:
                self._start()
            data = json.dumps(body).encode()
            self._socket.settimeout(REPLY_GRACE_SECONDS)
            # The descriptors come with the first bytes; the rest may be more than the socket holds.
            frame = len(data).to_bytes(4, "big") + data
            sent = socket.send_fds(self._socket, [frame[:4]], ends)
            self._socket.sendall(frame[sent:])

    def reply(self, conversation: "Conversation | None" = None) -> dict[str, Any]:
        """The reply to what was sent."""
        deadline = time.monotonic() + STEPS * self.limits.wall_seconds + REPLY_GRACE_SECONDS
        with self._broken_is_dead():
            if conversation is not None:
                while conversation.goes_on(self._socket.fileno(), deadline):
                    pass
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            # Each byte that is not UTF-8 is sent as six characters.
            reply = self._message(16 * int(self.limits.output_bytes) + MESSAGE_BYTES)
            _check_reply(reply)
            if conversation is not None:
                conversation.finish()
            if reply["spent"]:
                self.close()
            return reply

    @contextlib.contextmanager
    def _broken_is_dead(self) -> Iterator[None]:
        try:
            yield
        except LimitError:
            self.close()
            raise
        except (OSError, EOFError, ValueError, RecursionError) as error:
            output = self.close()
            raise BoxDiedError(f"{error or 'the box ended'}; its output: {output or 'none'}") from None

    def _message(self, most: int) -> dict[str, Any]:
        length = int.from_bytes(self._read(4), "big")
        if length > most:
            raise ValueError(f"the reply has {length} bytes, more than {most}")
        message = json.loads(self._read(length))
        if not isinstance(message, dict):
            raise ValueError("the reply is not an object")
        return message

    def compile(self, source: bytes) -> dict[str, Any]:
        """What a compiler that stays warm makes of `source`. Raises BoxDiedError or LimitError, with the box closed."""
        self._compiled += 1
        if self._compiled % COMPILER_LIFE == 0:  # none of them frees all it takes
            self.close()
        with self._broken_is_dead():
            if self._process is None:
                self._start()
            self._deadline = time.monotonic() + self.limits.wall_seconds
            self._before: float | None = None
            self._socket.settimeout(REPLY_GRACE_SECONDS)  # it may have to start before it takes a large source
            self._socket.sendall(len(source).to_bytes(4, "big") + source)
            self._socket.settimeout(WATCH_SECONDS)
            return self._message(COMPILED_BYTES)

    def _start(self) -> None:
        with self._lock:
            if self.cancelled:
                raise EOFError("cancelled")
            meter = -1
            self._group = cgroup.make() if self._contained and self._kind not in SERVICES else None
            if self._group is not None:
                meter = os.open(self._group / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
            command = _command(self._kind, self.limits, self.inside, self._contained, meter)
            if self._group is not None:
                command = ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self._group / "cgroup.procs"), *command]
            self._socket, theirs = socket.socketpair()
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
            with theirs:  # held here too, it would keep the box's end from being seen
                ends: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": self._errors}
                if not self._contained:
                    self._directory = tempfile.TemporaryDirectory()
                    ends["cwd"] = self._directory.name
                    ends["env"] = ENVIRONMENT | {"PYTHONPATH": str(toolchains.INSIDE.parents[2])}
                passed = (meter,) if meter >= 0 else ()
                self._process = subprocess.Popen(
                    command, **{"cwd": "/", **ends}, start_new_session=True, pass_fds=passed
                )
                if meter >= 0:
                    os.close(meter)

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._socket.recv(min(count, 1 << 20))
            except TimeoutError:
                self._check_limits()
                continue
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _check_limits(self) -> None:
        """Of a compiler, by all its processes; a program is watched from inside the box."""
        if self._kind not in SERVICES:
            raise TimeoutError("the box did not answer in time")
        assert self._process
        memory, cpu = _usage(self._process.pid)
        if self._before is None:  # CPU time of starting up, or a fraction of a second of this program's
            self._before = cpu
        if memory > max(self.limits.memory_bytes, COMPILER_BYTES):
            raise LimitError(Verdict.MEMORY_LIMIT)
        if cpu - self._before > self.limits.cpu_seconds or time.monotonic() > self._deadline:
            raise LimitError(Verdict.TIMEOUT)

    def cancel(self) -> None:
        """End the program that runs and start no other: the one call that another thread may make."""
        with self._lock:
            self.cancelled = True
            if (process := self._process) is not None:  # its own thread may close it meanwhile
                self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if not self._contained:  # no namespace ends what the server has started: it has to, when its host goes
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._socket.shutdown(socket.SHUT_RDWR)
                process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> str:
        """End the box and everything in it; returns the last that bubblewrap or the server said (programs cannot)."""
        if self._process is None:
            return ""
        self._end(self._process)
        self._process.wait()
        self._process = None
        if self._group is not None:
            cgroup.remove(self._group)
        self._socket.close()
        if not self._contained:
            self._directory.cleanup()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()[-2000:].decode(errors="replace").strip()


def _check_reply(reply: dict[str, Any]) -> None:
    """Raises ValueError unless `reply` is what inside/server.py answers."""
    kinds = {
        "spent": bool,
        "killed": str,
        "said": str,
        "stdout": str,
        "stderr": str,
        "wall_seconds": float,
        "cpu_seconds": float,
    }
    if any(not isinstance(reply.get(name), kind) for name, kind in kinds.items()):
        raise ValueError("a field of the reply is missing or has the wrong type")
    if reply["killed"] and reply["killed"] not in list(Verdict):
        raise ValueError("the reply has an unknown verdict")
    if any(not isinstance(reply.get(name), int | None) for name in ("exit_code", "signal")):
        raise ValueError("the reply has no valid exit code and signal")


def _usage(pid: int) -> tuple[int, float]:
    """Bytes of resident memory and CPU seconds of `pid` and its descendants."""
    memory, seconds = 0, 0.0
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                for child in file.read().split():
                    more = _usage(int(child))
                    memory, seconds = memory + more[0], seconds + more[1]
    except FileNotFoundError:  # it has just ended
        pass
    return memory, seconds

"""A box: bubblewrap around one warm interpreter (inside/server.py) that runs one program at a time."""

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
from typing import Any

from rerankjax.sandbox import seccomp
from rerankjax.sandbox.verdict import Limits, SandboxError

INSIDE = pathlib.Path(__file__).parent / "inside"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"}
# unshare, mount and setns for each program; drop what is left of them; read the memory use of what runs
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SYS_PTRACE")
REPLY_GRACE_SECONDS = 30.0  # beyond the program's own wall limit, before the box counts as dead


class BoxDiedError(Exception):
    """The box ended or no longer answers; the message has what it last said."""


def _tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"sandbox: {name} is not on PATH; install it: apt-get install {package}")
    return path


@functools.cache
def _shared() -> dict[str, str]:
    """What of this machine a program sees, read-only: where it appears -> where it is."""
    base = pathlib.Path(sys.base_prefix)
    python = os.path.realpath(sys.executable)
    paths = ["/usr", "/etc/ld.so.cache", python]
    paths += [str(base / lib) for lib in ("lib", "lib64") if (base / lib).is_dir()]
    paths.append(sysconfig.get_path("stdlib"))
    outside_usr = [p for p in paths if os.path.exists(p) and (p == "/usr" or not p.startswith("/usr/"))]
    return {path: path for path in outside_usr} | {"/sandbox/rerankjax/sandbox/inside": str(INSIDE)}


def _command() -> list[str]:
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
    # -S: the standard library and nothing that happens to be installed, so that verdicts agree between machines.
    return [*outer, *inner, os.path.realpath(sys.executable), "-B", "-s", "-S", "-m", "rerankjax.sandbox.inside.server"]


class Box:
    """Starts on the first `ask`, and anew on the first after `close`. One thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._cancelled = False

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run one program: the reply of inside/server.py to `body`. Raises BoxDiedError, with the box closed."""
        try:
            if self._process is None:
                self._start()
            self._socket.settimeout(self.limits.wall_seconds + REPLY_GRACE_SECONDS)
            data = json.dumps(body).encode()
            self._socket.sendall(len(data).to_bytes(4, "big") + data)
            return json.loads(self._read(int.from_bytes(self._read(4), "big")))
        except (OSError, EOFError) as error:
            said = self.close()
            raise BoxDiedError(f"{error or 'it ended'}; it said: {said or 'nothing'}") from None

    def _start(self) -> None:
        command = [*_command(), json.dumps(vars(self.limits)), seccomp.bpf().hex()]
        with self._lock:
            if self._cancelled:
                raise EOFError("cancelled")
            self._socket, theirs = socket.socketpair()
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
            with theirs:  # held here too, it would keep the box's end from being seen
                ends: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": self._errors}
                self._process = subprocess.Popen(command, **ends, start_new_session=True, cwd="/")

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def cancel(self) -> None:
        """End the program that runs and start no other: the one call that another thread may make."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> str:
        """End the box and everything in it; returns the last that bubblewrap or the server said (programs cannot)."""
        if self._process is None:
            return ""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._socket.close()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()[-2000:].decode(errors="replace").strip()

"""Runs inside the box: what a forked child does to itself before it touches a program."""

import ctypes
import math
import os
import resource
import struct
from collections.abc import Callable

CLONE_NEWNS, CLONE_NEWPID = 0x0002_0000, 0x2000_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 22, 24, 28, 47
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 38, 2, 4, 2
CAP_SETPCAP, CAP_SYS_PTRACE, CAP_SYS_ADMIN = 8, 19, 21
ALL_SECUREBITS_LOCKED = 0xEF  # uid 0 has no privileges; KEEP_CAPS alone is not set, and locked
CAPABILITY_VERSION_3 = 0x2008_0522

# A call without argument types passes Python integers as C ints, and all of these fit one.
_libc = ctypes.CDLL(None, use_errno=True)
# Looked up here, in the warm parent: what is done before the fork costs nothing after it.
_unshare, _setns, _mount, _capset, _prctl = (_libc[name] for name in ("unshare", "setns", "mount", "capset", "prctl"))


def _call(function: Callable[..., int], *args: object) -> None:
    if function(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}{args!r}: {os.strerror(number)}")


def lock_server(limits: dict[str, float], *, for_exec: bool = False) -> None:
    """Give up, for this process and all it starts, every way to gain capabilities at an exec; set what limits can be.

    `for_exec` lets the next program that is started keep what it needs to confine its own children; `no_more_exec`
    ends that.
    """
    if for_exec:
        has = sum(1 << number for number in (CAP_SETPCAP, CAP_SYS_PTRACE, CAP_SYS_ADMIN))
        sets = struct.pack("=6I", has, has, 1 << CAP_SYS_ADMIN, 0, 0, 0)
        _call(_capset, struct.pack("=Ii", CAPABILITY_VERSION_3, 0), sets)
        _call(_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0)
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _call(_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0)
    if not for_exec:
        no_more_exec()
    _call(_prctl, PR_SET_SECUREBITS, ALL_SECUREBITS_LOCKED, 0, 0, 0)
    _call(_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, value in {
        "CORE": 0,
        "FSIZE": limits["file_bytes"],
        "MEMLOCK": 1 << 16,
        "MSGQUEUE": 0,
        "NOFILE": limits["open_files"],
        "NPROC": limits["processes"] + 2,  # the server and bwrap's init are of the same user
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))


def no_more_exec() -> None:
    _call(_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def fork_in_new_pid_namespace(own_namespace: int) -> int:
    """os.fork, but the child is process 1 of a PID namespace: when it ends the kernel kills all it started."""
    _call(_unshare, CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _call(_setns, own_namespace, CLONE_NEWPID)
    return pid


def confine(limits: dict, filter_bpf: ctypes.Array[ctypes.c_char] | None) -> None:
    """Own mounts, hard limits, no capabilities, system calls filtered. Raises OSError if any of it is refused.

    Without a filter, which only the explicit opt-out leaves away, there is a directory of its own and a CPU limit.
    """
    # The server has the clock. This holds where it is too slow, and far above: on a virtual machine the kernel counts
    # here what the host took, too.
    cpu = math.ceil(2 * limits["cpu_seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    if filter_bpf is None:
        os.mkdir(str(os.getpid()))
        os.chdir(str(os.getpid()))
        return
    _call(_unshare, CLONE_NEWNS)
    kept = [(path, os.open(path, os.O_PATH)) for path in limits["kept"]]  # what the new /tmp would hide
    sizes = b"size=%d,nr_inodes=4096,mode=1777" % limits["tmp_bytes"]
    _call(_mount, b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, sizes)
    for path, source in kept:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{source}"):
            os.mkdir(path)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        _call(_mount, b"/proc/self/fd/%d" % source, path.encode(), b"", MS_BIND, b"")
        os.close(source)
    _call(_mount, b"tmpfs", b"/dev/shm", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, sizes)
    # read-only: no oom_score_adj, no /proc/sys
    _call(_mount, b"proc", b"/proc", b"proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, b"")
    os.chdir("/tmp")
    _call(_capset, struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24))
    rules = struct.pack("@HP", len(filter_bpf) // 8, ctypes.addressof(filter_bpf))
    _call(_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, rules, 0, 0)

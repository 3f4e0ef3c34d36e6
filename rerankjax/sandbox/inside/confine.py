"""Runs inside the box: what a forked child does to itself before it touches a program."""

import ctypes
import math
import os
import resource
import struct

CLONE_NEWNS, CLONE_NEWPID = 0x0002_0000, 0x2000_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 22, 24, 28, 47
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 38, 4, 2
ALL_SECUREBITS_LOCKED = 0xEF  # uid 0 is nobody special; KEEP_CAPS alone is not set, and locked
CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: object) -> None:
    if getattr(_libc, function)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{args!r}: {os.strerror(number)}")


def _prctl(option: int, *args: int) -> None:
    _call("prctl", option, *(ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:4]))


def lock_server() -> None:
    """Give up, for this process and all it forks, every way to gain capabilities at an exec."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _prctl(PR_CAPBSET_DROP, capability)
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(PR_SET_SECUREBITS, ALL_SECUREBITS_LOCKED)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def fork_in_new_pid_namespace(own_namespace: int) -> int:
    """os.fork, but the child is process 1 of a PID namespace: when it ends the kernel kills all it started."""
    _call("unshare", CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _call("setns", own_namespace, CLONE_NEWPID)
    return pid


def _mount(kind: str, target: str, flags: int, options: str) -> None:
    flags |= MS_NOSUID | MS_NODEV
    _call("mount", kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def confine(limits: dict[str, float], filter_bpf: bytes) -> None:
    """Own mounts, hard limits, no capabilities, system calls filtered. Raises OSError if any of it is refused."""
    os.setsid()
    _call("unshare", CLONE_NEWNS)
    sizes = f"size={limits['tmp_bytes']},nr_inodes=4096,mode=1777"
    _mount("tmpfs", "/tmp", 0, sizes)
    _mount("tmpfs", "/dev/shm", MS_NOEXEC, sizes)
    _mount("proc", "/proc", MS_RDONLY | MS_NOEXEC, "")  # read-only: no oom_score_adj, no /proc/sys
    os.chdir("/tmp")
    # The server's own look at the whole tree (server.py) comes first; these hold where it is too slow.
    cpu = math.ceil(limits["cpu_seconds"]) + 1
    for name, value in {
        "AS": limits["memory_bytes"],
        "CORE": 0,
        "CPU": cpu,
        "FSIZE": limits["file_bytes"],
        "MEMLOCK": 1 << 16,
        "MSGQUEUE": 0,
        "NOFILE": limits["open_files"],
        "NPROC": limits["processes"] + 2,  # the server and bwrap's init are of the same user
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))
    _call("capset", struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24))
    rules = ctypes.create_string_buffer(filter_bpf, len(filter_bpf))
    program = struct.pack("@HP", len(filter_bpf) // 8, ctypes.addressof(rules))
    _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), program)

"""The system calls that programs are refused, as a BPF filter made by libseccomp."""

import ctypes
import errno
import functools
import os
import struct

from rerankjax.sandbox.verdict import SandboxError

# Refused with EPERM: what could reach other processes, mounts, namespaces or the kernel's less trodden paths, and
# memory that no process's resident size shows (System V and POSIX queues, memfd).
REFUSED = """
ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
unshare setns mount umount2 pivot_root chroot mount_setattr fsopen fsconfig fsmount fspick move_mount open_tree
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register seccomp personality
keyctl add_key request_key name_to_handle_at open_by_handle_at fanotify_init lookup_dcookie
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd
sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex syslog vhangup nfsservctl
iopl ioperm modify_ldt memfd_create memfd_secret mbind migrate_pages move_pages set_mempolicy
shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semctl semtimedop mq_open
"""

CLONE_NAMESPACES = [0x0002_0000] + [1 << bit for bit in range(25, 31)]  # CLONE_NEWNS, NEWCGROUP ... NEWNET
AF_NETLINK_AND_ABOVE, UNIX_TO_INET6 = 10, range(3, 10)  # families other than unix (1), inet (2) and inet6 (10)
LAST_KNOWN = 462  # mseal, Linux 6.10: a newer system call is refused until someone has looked at it

ALLOW, ERRNO = 0x7FFF_0000, 0x0005_0000
EQUAL, GREATER, MASKED_EQUAL = 4, 6, 7


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@functools.cache
def bpf() -> bytes:
    """The filter as an array of `struct sock_filter`; raises SandboxError where libseccomp is missing or too old."""
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise SandboxError(f"sandbox: {error}; install the library: apt-get install libseccomp2") from None
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    )  # fmt: skip
    context = ctypes.c_void_p(lib.seccomp_init(ALLOW))

    def refuse(call: str, error: int, *comparison: int) -> None:
        number = lib.seccomp_syscall_resolve_name(call.encode())
        if number == -1:
            raise SandboxError(
                f"sandbox: libseccomp does not know the system call {call}; upgrade libseccomp to 2.5 or later"
            )
        compared = ctypes.byref(_Comparison(*comparison)) if comparison else None
        code = lib.seccomp_rule_add_array(context, ERRNO | error, number, bool(comparison), compared)
        if code < 0:
            raise SandboxError(f"sandbox: libseccomp rejected the rule for {call}: {os.strerror(-code)}")

    try:
        for call in REFUSED.split():
            refuse(call, errno.EPERM)
        refuse("clone3", errno.ENOSYS)  # its flags are behind a pointer; the C library then falls back on clone
        for flag in CLONE_NAMESPACES:
            refuse("clone", errno.EPERM, 0, MASKED_EQUAL, flag, flag)
        # vsock and some others reach past the network namespace
        refuse("socket", errno.EAFNOSUPPORT, 0, GREATER, AF_NETLINK_AND_ABOVE)
        for family in UNIX_TO_INET6:
            refuse("socket", errno.EAFNOSUPPORT, 0, EQUAL, family)
        with open(os.memfd_create("filter"), "w+b") as file:
            if code := lib.seccomp_export_bpf(context, file.fileno()):
                raise SandboxError(f"sandbox: libseccomp did not export the filter: {os.strerror(-code)}")
            file.seek(0)
            rules = file.read()
    finally:
        lib.seccomp_release(context)
    # load the number; above the last known? no: on to libseccomp's rules; yes: ENOSYS
    prologue = [(0x20, 0, 0, 0), (0x25, 0, 1, LAST_KNOWN), (0x06, 0, 0, ERRNO | errno.ENOSYS)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in prologue) + rules

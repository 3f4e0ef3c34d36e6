"""The memory of a stage: its peak, on the host (which on a CPU includes the model) and on an accelerator; mappings."""

import contextlib
import ctypes
from pathlib import Path

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MAPPINGS, MAX_MAPPINGS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def forget_peak() -> None:
    """Gives freed memory back to the system, and resets the peak of this process's memory, on Linux.

    glibc keeps most of what XLA frees (malloc_trim(3)). The peak is reset by clear_refs (proc(5)).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def limit_mappings() -> None:
    """Drops JAX's compiled programs once this process has half of the memory mappings that Linux allows it (65,530).

    XLA on a CPU maps each kernel of a program separately, some 400 mappings for a program of a decoder, and a process
    that exceeds the limit ends in a segmentation fault. A dropped program comes back from the compilation cache.
    """
    with contextlib.suppress(OSError):
        if 2 * MAPPINGS.read_bytes().count(b"\n") > int(MAX_MAPPINGS.read_text(encoding="utf-8")):
            jax.clear_caches()


def peaks() -> dict[str, int]:
    """Peak bytes of this process's resident memory (on Linux) and of its first device's memory (if JAX reports it).

    A device's peak is since the process began.
    """
    peak_bytes: dict[str, int] = {}
    with contextlib.suppress(OSError, StopIteration):
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        peak_bytes["host"] = 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        peak_bytes["device"] = int(stats["peak_bytes_in_use"])
    return peak_bytes

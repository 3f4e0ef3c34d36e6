"""The peak memory of a stage: the host's, which on a CPU includes the model, and an accelerator's."""

import contextlib
import ctypes
from pathlib import Path

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Gives freed memory back to the system, and resets the peak of this process's memory, on Linux.

    glibc keeps most of what XLA frees (malloc_trim(3)). The peak is reset by clear_refs (proc(5)).
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


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

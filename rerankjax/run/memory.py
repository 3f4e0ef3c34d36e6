"""How much memory a stage took at its peak: the host's, which on a CPU is the model's too, and an accelerator's."""

import contextlib
from pathlib import Path

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Starts the peak of this process's memory anew, where Linux lets it (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peaks() -> dict[str, int]:
    """Bytes of this process's resident memory at its peak, and of its first device's if that tells; {} elsewhere.

    A device's peak is since the process began.
    """
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, StopIteration):
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        found["host"] = 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        found["device"] = int(stats["peak_bytes_in_use"])
    return found

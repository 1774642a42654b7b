"""Peak memory of this process, from the kernel's own account."""

import contextlib
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of this process in memory now."""
    return _field("VmRSS")


def peak() -> int:
    """The most bytes of this process in memory since it began, or since `reset_peak`."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Start the account of `peak` anew, where the kernel lets a process do so; else it goes on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

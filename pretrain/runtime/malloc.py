"""What glibc's allocator does with freed memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD of mallopt(3), in bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3), in bytes
_LARGEST = 32 << 20  # to where glibc raises it by itself
_KEPT = 1 << 30  # bytes at the end of the heap


def kept() -> None:
    """From here on, freed memory mostly stays in this process. Activations on a CPU come and go by the gigabyte in each
    step, and every page that the system gives again is cleared first: up to 7 % of a step."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)


@contextmanager
def given_back(size: int) -> Iterator[None]:
    """While this is open, memory of `size` bytes and more goes back to the system when it is freed. Otherwise glibc
    keeps it in its heap once it has seen some, where aligned pieces do not fit into each other's holes: half of all
    that is written."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, size)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)

"""Tells glibc's allocator what to do with freed memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD of mallopt(3), in bytes
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3), in bytes
_LARGEST = 32 << 20  # bytes: glibc raises this threshold by itself up to here
_KEPT = 1 << 30  # bytes that may stay free at the end of the heap


def keep_freed() -> None:
    """Lets freed memory stay in this process from now on, for the most part.

    Activations on a CPU come and go by the gigabyte in each step, and the system clears every page that it gives again,
    which takes up to 7 % of a step.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)


@contextmanager
def given_back(size: int) -> Iterator[None]:
    """A context in which memory of `size` bytes and more goes back to the system when it is freed.

    Otherwise glibc keeps such memory in its heap once it has seen some. Aligned pieces do not fit into each other's
    holes there, so the heap grows to half of all that is written.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, size)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)

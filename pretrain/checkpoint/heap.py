"""What glibc's allocator does with freed memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3), in bytes
_LARGEST = 32 << 20  # to where glibc raises it by itself


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

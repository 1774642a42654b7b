"""Files as a sequence of 1 MiB blocks: each is hashed on its way out and verified on its way in."""

import contextlib
import ctypes
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import xxhash

from pretrain.checkpoint.manifest import CorruptCheckpoint
from pretrain.checkpoint.places import BLOCK, StoredFile

__all__ = ["BLOCK", "BlockReader", "BlockWriter"]

AHEAD = 8 << 20  # bytes that the disk begins to write at a time, long before fsync waits for them

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range


def _start_writing(fd: int, offset: int, size: int) -> None:
    """Asks the kernel to begin to write a range to the disk, as fsync will: a hint, so that it may fail."""
    start = 2  # SYNC_FILE_RANGE_WRITE
    _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), ctypes.c_uint(start))


class BlockWriter:
    """Writes a new file from its start to its end through one block of memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._buffer = torch.empty(BLOCK, dtype=torch.uint8)
        self._bytes = self._buffer.numpy().data
        self._used = 0
        self._size = 0
        self._begun = 0
        self._hashes: list[str] = []

    def write(self, data: memoryview) -> None:
        """Appends bytes. Whole blocks go out of `data` itself, without a copy."""
        at = 0
        while at < len(data):
            if not self._used and len(data) - at >= BLOCK:
                self._out(data[at : at + BLOCK])
                at += BLOCK
            else:
                n = min(BLOCK - self._used, len(data) - at)
                self._bytes[self._used : self._used + n] = data[at : at + n]
                self.advance(n)
                at += n

    def free(self) -> torch.Tensor:
        """The unused rest of the current block, uint8 and never empty: fill its beginning, then `advance`."""
        return self._buffer[self._used :]

    def advance(self, n: int) -> None:
        """Takes over `n` bytes that were put into `free()`."""
        self._used += n
        if self._used == BLOCK:
            self._out(self._bytes)
            self._used = 0

    def finish(self) -> StoredFile:
        """Writes the last block and waits until the disk has everything."""
        if self._used:
            self._out(self._bytes[: self._used])
            self._used = 0
        os.fsync(self._fd)
        self.close()
        return StoredFile(self._size, tuple(self._hashes))

    def close(self) -> None:
        """Gives the file up; harmless after `finish`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _out(self, block: memoryview) -> None:
        self._hashes.append(xxhash.xxh3_128_hexdigest(block))
        self._size += len(block)
        while len(block):
            block = block[os.write(self._fd, block) :]
        if self._size - self._begun >= AHEAD:
            _start_writing(self._fd, self._begun, self._size - self._begun)
            self._begun = self._size


class BlockReader:
    """Verified blocks of the files of one checkpoint, the last few of them kept.

    Attributes: bytes_read and blocks_read count what was read from files, not what came from the kept blocks.
    """

    KEPT_BLOCKS = 32
    OPEN_FILES = 64

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        self.verify = verify
        self.bytes_read = 0
        self.blocks_read = 0
        self._fds: OrderedDict[str, int] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def block(self, name: str, file: StoredFile, index: int) -> np.ndarray:
        """Block `index` of a file, uint8; to be used before the next call.

        Raises CorruptCheckpoint naming file and block: missing, truncated, unreadable, or another content.
        """
        cached = self._blocks.get((name, index))
        if cached is not None:
            self._blocks.move_to_end((name, index))
            return cached[: self._length(file, index)]
        full = len(self._blocks) >= self.KEPT_BLOCKS
        buffer = self._blocks.popitem(last=False)[1] if full else np.empty(BLOCK, dtype=np.uint8)
        block = buffer[: self._length(file, index)]
        self.read(name, file, index, block)
        self._blocks[name, index] = buffer
        return block

    def read(self, name: str, file: StoredFile, index: int, into: np.ndarray) -> None:
        """Reads and verifies one block into contiguous uint8 memory of its length; raises as `block` does."""
        where = f"{self.folder / name}, block {index}"
        try:
            fd = self._open(name, file)
            done = 0
            while done < len(into):
                n = os.preadv(fd, [into[done:].data], index * BLOCK + done)
                if not n:
                    raise CorruptCheckpoint(f"{where}: the file ends here, and should have {file.size} bytes")
                done += n
        except OSError as error:
            raise CorruptCheckpoint(f"{where}: cannot be read ({error.strerror})") from error
        self.bytes_read += len(into)
        self.blocks_read += 1
        if self.verify and xxhash.xxh3_128_hexdigest(into.data) != file.blocks[index]:
            raise CorruptCheckpoint(f"{where}: its content is not what was written (the xxh3_128 differs)")

    def expect(self, name: str, file: StoredFile, begin: int, end: int) -> None:
        """A hint that these bytes will be asked for soon."""
        with contextlib.suppress(OSError, CorruptCheckpoint):  # `read` will raise it
            os.posix_fadvise(self._open(name, file), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def is_open(self, name: str) -> bool:
        """Whether the file could be opened and has its size."""
        return name in self._fds

    def close(self) -> None:
        """Closes the files and drops the kept blocks."""
        while self._fds:
            os.close(self._fds.popitem()[1])
        self._blocks.clear()

    @staticmethod
    def _length(file: StoredFile, index: int) -> int:
        return min(BLOCK, file.size - index * BLOCK)

    def _open(self, name: str, file: StoredFile) -> int:
        fd = self._fds.get(name)
        if fd is not None:
            self._fds.move_to_end(name)
            return fd
        path = self.folder / name
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        if size != file.size:
            os.close(fd)
            raise CorruptCheckpoint(f"{path}: {size} bytes, and should have {file.size}")
        self._fds[name] = fd
        if len(self._fds) > self.OPEN_FILES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

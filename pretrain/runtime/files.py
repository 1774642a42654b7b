"""Durable files: a file is on the disk before anything refers to it, and is never seen half written."""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import xxhash
from typing_extensions import TypedDict

from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import Number

log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; for its lease, 90 s by default, a network filesystem keeps the locks of a machine that died
RETRY = 5.0  # seconds between two attempts to take a lock


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably; one that exists is left alone."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file so that a reader finds the old one or the new one, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as `write_file` does. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_file(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def hash_of(path: Path) -> str:
    """The xxh3_128 of a file's content, in hex."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            state.update(block)
    return state.hexdigest()


class Done(TypedDict):
    """The part of a DONE file that is read."""

    validation_bits_per_byte: NotRequired[Number | None]


def mark_done(folder: Path, info: Mapping[str, Any]) -> None:
    """Writes a stage's `DONE` marker, a JSON file: the stage is finished. Numbers that are not finite become null."""
    write_json(folder / "DONE", documents.finite(info))


def bits_per_byte(folder: Path) -> float | None:
    """The bits per byte of the last validation of a finished stage, from its DONE file; None if it does not say.

    An empty DONE is one that somebody made by hand. Raises UserError for one that is damaged.
    """
    path = folder / "DONE"
    try:
        if path.is_file() and not path.read_bytes().strip():
            return None
        value: float | None = documents.read(path, Done).get("validation_bits_per_byte")
    except UserError as error:
        raise UserError(f"{error}: empty it, if the stage is finished, or remove it") from None
    return value


def is_done(folder: Path) -> bool:
    """Whether the stage of this folder is finished."""
    return (folder / "DONE").exists()


class Lock:
    """An exclusive lock between processes, held until `release` or the end of the process, however it ends.

    A POSIX record lock: it works on NFS and Lustre, and children made by fork do not hold it after a kill. A holder
    on another machine may have died with it, so its lock is waited for as long as such locks live on.

    Raises UserError naming the holder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take()
        except BaseException:
            self.release()
            raise
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self) -> None:
        deadline = time.monotonic() + LEASE
        while True:
            try:
                return fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "another process"
                if owner.endswith(f" on {socket.gethostname()}") or time.monotonic() > deadline:
                    raise UserError(
                        f"{self.path.parent}: {owner} writes here (it holds {self.path.name}). Two runs must not write "
                        "one folder: stop the other one, or give this run another name."
                    ) from error
                log.warning("%s: waiting for the lock of %s, which may have died", self.path.parent, owner)
                time.sleep(RETRY)
            except OSError as error:
                log.warning(
                    "%s: this filesystem has no file locks (%s): see to it yourself that only one run writes here",
                    self.path.parent,
                    error.strerror,
                )
                return None

    def release(self) -> None:
        """Gives the lock back. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

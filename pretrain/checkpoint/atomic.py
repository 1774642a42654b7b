"""Durable files: what is written is on the disk before anything refers to it, and is never seen half written."""

import fcntl
import json
import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.errors import UserError


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file so that a reader finds the old one or the new one, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    fsync_folder(path.parent)


def mark_done(folder: Path, info: Mapping[str, Any]) -> None:
    """Writes a stage's `DONE` marker, a JSON file: the stage is finished."""
    write_file(folder / "DONE", (json.dumps(info, indent=1) + "\n").encode())


def is_done(folder: Path) -> bool:
    """Whether the stage of this folder is finished."""
    return (folder / "DONE").exists()


class Lock:
    """An exclusive lock between processes, held until `release` or the end of the process, however it ends.

    A POSIX record lock: it works on NFS and Lustre, and children made by fork do not hold it on after a kill.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._fd)
            raise UserError(
                f"{path.parent}: {owner} writes here (it holds {path.name}). Two runs must not write one folder: "
                "stop the other one, or give this run another name."
            ) from error
        except OSError as error:
            warnings.warn(
                f"{path.parent}: this filesystem has no file locks ({error.strerror}): "
                "see to it yourself that only one run writes here",
                stacklevel=2,
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Gives the lock back. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

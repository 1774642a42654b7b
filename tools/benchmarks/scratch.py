"""A folder for what a benchmark writes, gigabytes of it, that does not outlive the benchmark for long.

It is removed at the end. What a benchmark that was killed has left is removed by the next one in the same place, which
knows it by its name and by the lock in it that nobody holds any more; a benchmark that runs holds its own.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError

LOCK = "lock"

log = logging.getLogger(__name__)


@contextmanager
def scratch(place: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `place`, after what others with this prefix have left there is gone; UserError where none can be
    made."""
    for left in sorted(place.glob(f"{prefix}*")):
        _remove_if_left(left)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=place))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{place}: no folder can be made here to write into: {error.strerror}") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under its name only now: whoever sees it finds it locked.
        folder = folder.rename(folder.with_name(folder.name.removeprefix(".")))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:  # not made here, or gone by now
        return
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.warning("%s is of a benchmark that was killed: removed", folder)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # it runs, here or on another machine
        return
    finally:
        os.close(lock)

"""A folder for what a benchmark writes, gigabytes of it, that does not outlive the benchmark for long.

It is removed at the end. What a benchmark that was killed has left is removed by the next one in the same place, which
knows it by its name and by the lock in it that nobody holds any more; a benchmark that runs holds its own.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import UserError
from pretrain.runtime.files import Lock

LOCK = "lock"

log = logging.getLogger(__name__)


@contextmanager
def scratch(place: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `place`, after what others with this prefix have left there is gone; UserError where none can be
    made."""
    for left in sorted(place.glob(f"{prefix}*/{LOCK}")):
        with suppress(OSError, UserError), Lock(left):  # UserError: it runs
            log.warning("%s is of a benchmark that was killed: removed", left.parent)
            shutil.rmtree(left.parent, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=place))
    except OSError as error:
        raise UserError(f"{place}: no folder can be made here to write into: {error.strerror}") from error
    with Lock(folder / LOCK):
        try:
            # Under its name only now: whoever sees it finds it locked.
            folder = folder.rename(folder.with_name(folder.name.removeprefix(".")))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

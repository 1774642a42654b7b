"""Turns what prevents a file of a report from being written into an error for the user."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError
from pretrain.runtime.documents import one_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which `path` is written; makes its folder. Raises UserError naming it if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for a format that it does not know
        raise UserError(f"{path} cannot be written: {one_line(str(error))}") from error

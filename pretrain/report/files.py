"""Files that a report is made of, where they may not be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import UserError
from pretrain.runtime.documents import one_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While `path` is written, in a folder that is made if need be: UserError naming it when that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:  # a format of pictures that matplotlib has not is a ValueError
        raise UserError(f"{path} cannot be written: {one_line(str(error))}") from error

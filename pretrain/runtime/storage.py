"""Storage by URL: whatever fsspec reads and writes (s3://, gs://, https://, file://), tried again when it fails.

The packages of storages other than files and the web are the user's to install (s3://: s3fs; gs://: gcsfs).
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from pretrain.errors import UserError

TRIES, WAIT = 6, 0.5  # seconds after the first failure, and twice as long after each further one
AT_ONCE = 16  # blocks that are read in one piece

CACHE = "CAMBIUM_CACHE"  # the environment's word for the folder of what is kept of other places

T = TypeVar("T")


class Missing(UserError):
    """What is not where a URL says."""


class Unlike(UserError):
    """What is there, time and again, with another content than was written."""


class Mismatch(OSError):
    """Raised by `work` of `tried` for a content that is not the one that was written: it may have been changed on its
    way."""


def is_url(path: Path | str) -> bool:
    """Whether a path is the URL of something elsewhere."""
    return "://" in str(path)


def url_of(path: Path) -> str | None:
    """The URL that was written where a command line takes a path, which has one slash less then; None for a path."""
    match = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", str(path), re.DOTALL)
    if not match or path.exists():
        return None
    return f"{match[1]}://{'/' if match[1] in ('file', 'local') else ''}{match[2]}"


def cache(*names: str) -> Path:
    """The folder of what is kept of other places (of that of these names); any of it may be removed, and comes again
    when it is wanted. A URL among the names is hashed."""
    parts = (xxhash.xxh3_128_hexdigest(name.encode()) if is_url(name) else name for name in names)
    return Path(os.environ.get(CACHE, "~/.cache/cambium")).expanduser().joinpath(*parts)


def tried(work: Callable[[Any, str], T], url: str, hint: str = "") -> T:
    """What `work` gives for a filesystem of fsspec and a path in it, tried again after failures that may pass.

    hint: what to do where there is nothing. Raises Missing at once where there is nothing, UserError where the
    credentials do not do or the package is missing, and after the last try; Unlike if that was a Mismatch.
    """
    import fsspec  # which takes a third of a second, and only URLs need

    try:
        # Without a cache of listings: others write there too.
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {error}") from error
    for number in range(TRIES):
        try:
            return work(fs, path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise Missing(f"{url}: it is not there{f' ({hint})' if hint else ''}") from error
        except Exception as error:  # each storage has errors of its own
            if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                raise UserError(f"{url}: it may not be used: check its credentials ({_short(error)})") from error
            problem = error
        if number < TRIES - 1:
            time.sleep(WAIT * 2**number)
    kind = Unlike if isinstance(problem, Mismatch) else UserError
    raise kind(f"{url}: it cannot be used, {TRIES} times now: {_short(problem)}") from problem


def listing(url: str) -> dict[str, int]:
    """The sizes in bytes of all files below a URL, by name; none where there is nothing. Raises as `tried` does."""

    def find(fs: Any, root: str) -> dict[str, int]:
        root = root.rstrip("/") + "/"
        infos = fs.find(root, detail=True)
        return {name.removeprefix(root): info["size"] for name, info in infos.items() if name.startswith(root)}

    return tried(find, url)


def put(path: Path, url: str, size: int, hashes: Sequence[str], block: int) -> None:
    """Copies a file to a URL and reads it back, until it is what it should be there: of `size` bytes and, a block at a
    time, of these xxh3_128. Raises as `tried` does."""

    def copy(fs: Any, target: str) -> None:
        _make_room(fs, target)
        try:
            fs.put_file(str(path), target)
            same = holds(fs, target, size, hashes, block)
        except FileNotFoundError as error:
            if not path.exists():
                raise
            # S3 knows no upload in parts that it has ended already, whose answer was lost and that is ended again.
            raise OSError(f"it was not taken: {error}") from error
        if not same:
            raise Mismatch(f"it does not hold what {path} should")

    tried(copy, url)


def put_bytes(data: bytes, url: str) -> None:
    """Writes a small file to a URL and reads it back. Raises as `tried` does."""

    def write(fs: Any, target: str) -> None:
        _make_room(fs, target)
        fs.pipe_file(target, data)
        if fs.cat_file(target) != data:
            raise Mismatch("it does not hold what was written")

    tried(write, url)


def get_bytes(url: str) -> bytes:
    """The whole content of a small file at a URL. Raises as `tried` does."""
    return tried(lambda fs, path: bytes(fs.cat_file(path)), url)


def get(url: str, start: int, stop: int, hashes: Sequence[str], block: int) -> bytes:
    """Bytes of a file at a URL, which begin with a block, and whose blocks have these xxh3_128. Raises as `tried`
    does."""

    def read(fs: Any, path: str) -> bytes:
        data = bytes(fs.cat_file(path, start=start, end=stop))
        if hashes_of(data, block) != list(hashes):
            raise Mismatch(f"bytes {start} to {stop} are not what was written")
        return data

    return tried(read, url)


def remove(url: str) -> None:
    """Removes a file, or a folder with all that is in it, if it is there. Raises as `tried` does."""
    with contextlib.suppress(Missing):
        tried(lambda fs, path: fs.rm(path, recursive=True), url)


def holds(fs: Any, path: str, size: int, hashes: Sequence[str], block: int) -> bool:
    """Whether a file has this size and in each block this content; it is read whole."""
    if fs.size(path) != size:
        return False
    for first in range(0, len(hashes), AT_ONCE):
        data = fs.cat_file(path, start=first * block, end=min((first + AT_ONCE) * block, size))
        if hashes_of(data, block) != list(hashes[first : first + AT_ONCE]):
            return False
    return True


def hashes_of(data: bytes, block: int) -> list[str]:
    """The xxh3_128 of each block, in hex."""
    return [xxhash.xxh3_128_hexdigest(data[at : at + block]) for at in range(0, len(data), block)]


def _make_room(fs: Any, target: str) -> None:
    if not fs.async_impl:  # those that are, are object storages, which have no folders
        fs.makedirs(target.rpartition("/")[0], exist_ok=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Corpora away from the local disk: any URL that fsspec reads (s3://, gs://, https://, file://), a block at a time.

A published corpus is a prepared one with `blocks.json` beside it, written last: the size of each file and the xxh3_128
of each of its blocks. A reader keeps what it has read in a cache on its own disk. Tokens are a sparse file there, of
which the blocks that have come are marked; each is verified when it comes, and once more by every process that uses it.
So whatever ends a process, and whatever a disk loses in a power cut, no token is read that was not published.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import TypedDict

from pretrain.data.ragged import ragged
from pretrain.errors import UserError
from pretrain.runtime import documents
from pretrain.runtime.documents import Count, Text
from pretrain.runtime.files import make_folder, write_file
from pretrain.runtime.storage import CACHE, Mismatch, cache, put, put_bytes, tried

BLOCK = 1 << 20
BLOCKS, FORMAT_VERSION = "blocks.json", 1
ELSEWHERE = f"make room (what is in a cache comes again when it is wanted), or name another folder in {CACHE}"
AT_ONCE = 16  # blocks that come at the same time
ROOM = 64 << 20  # bytes of a disk that the cache leaves free
NAME = re.compile(r"(?:[\w@+=-][\w.@+=-]*/)*[\w@+=-][\w.@+=-]*", re.ASCII)
SPARSE, MARK, THERE = ".bin", ".remote", ".there"

T = TypeVar("T")


class _File(TypedDict):
    """A file of a published corpus: its size, and the xxh3_128 of each block in hex (the last may be shorter)."""

    size: Count
    blocks: list[Text]


class _Published(TypedDict):
    """Of blocks.json."""

    format_version: Count
    files: dict[Text, _File]


class _Marked(_File):
    """Of the mark beside a sparse file: where its blocks come from."""

    url: Text


def check_free(url: str) -> None:
    """Raises UserError for a URL where something has been published, or that cannot be used."""
    if _tried(lambda fs, root: fs.exists(f"{root.rstrip('/')}/{BLOCKS}"), url):
        raise UserError(f"{url}: there is something already ({BLOCKS}): choose another place")


def publish(folder: Path, url: str) -> int:
    """Copies a prepared corpus (or any folder of files) to a URL where none is yet, and says how many bytes.

    Raises UserError if it cannot.
    """
    url = url.rstrip("/")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    check_free(url)
    described: dict[str, _File] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        if not NAME.fullmatch(name):
            raise UserError(f"{path}: a name that not every storage takes: rename it")
        file = described[name] = _described(path)
        put(path, f"{url}/{name}", file["size"], file["blocks"], BLOCK)
    put_bytes(json.dumps({"format_version": FORMAT_VERSION, "files": described}).encode(), f"{url}/{BLOCKS}")
    return sum(file["size"] for file in described.values())


def local(url: str) -> Path:
    """The folder on this machine's disk that stands for a published corpus; tokens come into it as they are read.

    Raises UserError for a URL that cannot be read, a corpus that was not published, and files that are not what was.
    """
    url = url.rstrip("/")
    text: bytes = _tried(lambda fs, root: fs.cat_file(f"{root}/{BLOCKS}"), url)
    published: _Published = documents.parse(text, f"{url}/{BLOCKS}")
    documents.checked(_Published, published, f"{url}/{BLOCKS}")
    wrong = next((name for name, file in published["files"].items() if not _sound(name, file)), None)
    if published["format_version"] != FORMAT_VERSION or wrong is not None:
        raise UserError(f"{url}/{BLOCKS}: not that of a published corpus ({documents.show(wrong)})")
    folder = cache(xxhash.xxh3_128_hexdigest(text))
    with _on_disk(folder):
        make_folder(folder)
    absent = {name: file for name, file in published["files"].items() if not (folder / name).is_file()}
    whole = sum(file["size"] for name, file in absent.items() if not name.endswith(SPARSE))
    with _on_disk(folder, whole), _locked(folder / ".lock"):
        for name, file in published["files"].items():
            make_folder((folder / name).parent)
            if name.endswith(SPARSE):
                _sparse(folder / name, f"{url}/{name}", file)
            elif not _intact(folder / name, file):
                write_file(folder / name, b"".join(fetched(f"{url}/{name}", file, i) for i in range(_blocks(file))))
    return folder


class Blocks:
    """The blocks of a sparse file, which come when they are wanted."""

    def __init__(self, path: Path, mark: _Marked) -> None:
        self.path, self.mark = path, mark
        self._there = np.memmap(path.with_suffix(THERE), mode="r+", dtype=np.uint8)
        self._seen = np.zeros(_blocks(mark), dtype=bool)

    @staticmethod
    def beside(path: Path) -> Blocks | None:
        """Those of a file in the cache; None for any other file, and an empty one."""
        mark = path.with_suffix(MARK)
        if not mark.is_file() or not path.stat().st_size:
            return None
        return Blocks(path, documents.read(mark, _Marked))

    def want(self, starts: NDArray[np.integer], stops: NDArray[np.integer]) -> None:
        """Sees to it that these ranges of bytes are there, and are what was published. Raises UserError if not."""
        some = stops > starts
        first, last = starts[some] // BLOCK, (stops[some] - 1) // BLOCK
        wanted = np.unique(ragged(first, last - first + 1))
        wanted = wanted[~self._seen[wanted]]
        with _on_disk(self.path, BLOCK * int((self._there[wanted] == 0).sum())):
            if len(wanted) > 1:
                with ThreadPoolExecutor(min(AT_ONCE, len(wanted))) as pool:
                    list(pool.map(self._get, wanted.tolist()))
            elif len(wanted):
                self._get(int(wanted[0]))
        self._seen[wanted] = True

    def _get(self, index: int) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            if self._there[index]:
                data = os.pread(file.fileno(), BLOCK, index * BLOCK)
                if xxhash.xxh3_128_hexdigest(data) == self.mark["blocks"][index]:
                    return
            data = fetched(self.mark["url"], self.mark, index)
            if os.pwrite(file.fileno(), data, index * BLOCK) != len(data):  # as much as there was room for
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self._there[index] = 1


def fetched(url: str, file: _File, index: int) -> bytes:
    """A block from where it was published, verified. Raises UserError if it cannot be had."""
    start, stop = index * BLOCK, min((index + 1) * BLOCK, file["size"])

    def get(fs: Any, path: str) -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=stop)
        if xxhash.xxh3_128_hexdigest(data) != file["blocks"][index]:
            raise Mismatch(f"block {index} is not what was published")
        return data

    return _tried(get, url)


def _tried(work: Callable[[Any, str], T], url: str) -> T:
    return tried(work, url, hint="a corpus is put there by tools/publish_corpus.py")


def _described(path: Path) -> _File:
    hashes = []
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hashes.append(xxhash.xxh3_128_hexdigest(block))
    return {"size": path.stat().st_size, "blocks": hashes}


def _blocks(file: _File) -> int:
    return -(-file["size"] // BLOCK)


def _sound(name: str, file: _File) -> bool:
    return bool(NAME.fullmatch(name)) and len(file["blocks"]) == _blocks(file)


def _intact(path: Path, file: _File) -> bool:
    return path.is_file() and path.stat().st_size == file["size"] and _described(path) == file


def _sparse(path: Path, url: str, file: _File) -> None:
    """Makes the sparse file, and has both its ends come, by which shards are told apart."""
    there = path.with_suffix(THERE)
    if not path.is_file() or path.stat().st_size != file["size"] or not there.is_file():
        write_file(there, bytes(_blocks(file)))
        with open(path, "wb") as sparse:
            sparse.truncate(file["size"])
    write_file(path.with_suffix(MARK), json.dumps({"url": url, **file}).encode())
    if blocks := Blocks.beside(path):
        blocks.want(np.array([0, file["size"] - 1]), np.array([1, file["size"]]))


@contextmanager
def _on_disk(path: Path, size: int = 0) -> Iterator[None]:
    """Writes into the cache, at most so many bytes. Raises UserError where the disk has no room, or cannot be used."""
    where = next(folder for folder in (path, *path.parents) if folder.exists())
    if size and (free := shutil.disk_usage(where).free) < size + ROOM:
        raise UserError(
            f"{where}: the disk of the cache has {free / 1e6:,.0f} MB free, and {size / 1e6:,.1f} MB are to come: "
            f"{ELSEWHERE}"
        )
    try:
        yield
    except OSError as error:
        problem = f"the cache cannot be used ({error.strerror or error})"
        raise UserError(f"{error.filename or path}: {problem}: {ELSEWHERE}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for the other processes of this machine that prepare the same folder."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

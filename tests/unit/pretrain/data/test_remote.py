"""Corpora at a URL: what is read is what was published, whatever the storage, the cache or the network does to it."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from pretrain.data.corpus import remote
from pretrain.data.corpus.corpus import Corpus
from pretrain.errors import UserError
from pretrain.runtime import storage
from tools.publish_corpus import main


class Flaky(LocalFileSystem):
    """Files of this machine by a storage that fails, gives less than was asked for, or something else, by turns."""

    protocol = "flaky"
    calls = 0
    asked: ClassVar[Counter[tuple[str, int | None]]] = Counter()  # how often for each place in each file
    broken = False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **how: Any) -> bytes:
        Flaky.calls += 1
        data = bytes(super().cat_file(path, start=start, end=end, **how))
        if path.endswith(remote.BLOCKS):
            return data
        Flaky.asked[path, start] += 1
        turn = Flaky.asked[path, start] % 4
        if Flaky.broken or turn == 1:
            return data[:-1] + bytes([data[-1] ^ 1])
        if turn == 2:
            raise ConnectionError("the connection was reset")
        return data[: len(data) // 2] if turn == 3 else data


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def published(corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus in small blocks, where it was published; with an empty cache."""
    monkeypatch.setattr(remote, "BLOCK", 4096)
    monkeypatch.setattr(storage, "WAIT", 0.0)
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(Flaky, "broken", False)
    assert main([str(corpus_path), f"file://{tmp_path / 'bucket'}"]) == 0
    return tmp_path / "bucket"


def everything(corpus: Corpus) -> np.ndarray:
    return corpus.read(*corpus.tokens.document_ranges(np.arange(corpus.tokens.documents)))


def there(tmp_path: Path) -> np.ndarray:
    (marks,) = (tmp_path / "cache").rglob("tokens.there")
    return np.frombuffer(marks.read_bytes(), dtype=np.uint8)


@pytest.mark.parametrize("scheme", ["file", "flaky"])
def test_it_is_the_corpus_that_was_published(scheme: str, published: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Only what is read comes, and comes once."""
    opened = Corpus.open(f"{scheme}://{published}")
    assert opened.hash == corpus.hash
    assert there(tmp_path).sum() == 2 < len(there(tmp_path))
    np.testing.assert_array_equal(everything(opened), everything(corpus))
    assert there(tmp_path).all()
    calls = Flaky.calls
    np.testing.assert_array_equal(everything(Corpus.open(f"{scheme}://{published}")), everything(corpus))
    assert Flaky.calls <= calls + 1


def test_a_cache_that_lost_its_content_is_filled_again(published: Path, corpus: Corpus, tmp_path: Path) -> None:
    """As after a power cut: blocks that are marked and are not there, a file that is gone or too short."""
    url = f"file://{published}"
    everything(Corpus.open(url))
    (tokens,) = (tmp_path / "cache").rglob("tokens.bin")
    size = tokens.stat().st_size
    with open(tokens, "r+b") as file:
        file.truncate(size // 2)
        file.truncate(size)
    np.testing.assert_array_equal(everything(Corpus.open(url)), everything(corpus))
    tokens.with_suffix(".idx").write_bytes(b"?")
    tokens.with_suffix(".there").unlink()
    np.testing.assert_array_equal(everything(Corpus.open(url)), everything(corpus))
    tokens.write_bytes(b"")
    np.testing.assert_array_equal(everything(Corpus.open(url)), everything(corpus))


def test_what_cannot_be_had_is_refused_in_one_line(
    published: Path, corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, problem in (
        (f"file://{tmp_path}/nothing", "it is not there"),
        (f"file://{corpus_path}", "it is not there"),  # prepared, and not published
        ("nowhere://bucket/corpus", "nowhere"),
    ):
        with pytest.raises(UserError, match=problem) as raised:
            Corpus.open(url)
        assert len(str(raised.value).splitlines()) == 1
    assert main([str(corpus_path), f"file://{published}"]) == 2  # there is one
    assert main([str(corpus_path), str(tmp_path / "folder")]) == 2
    assert main([str(tmp_path), f"file://{tmp_path / 'other'}"]) == 2
    monkeypatch.setattr(Flaky, "broken", True)
    with pytest.raises(UserError, match=r"6 times now: block \d+ is not what was published"):
        Corpus.open(f"flaky://{published}")
    blocks = json.loads((published / remote.BLOCKS).read_text())
    for name in ("../outside.idx", "/etc/passwd", "a/./../b"):
        changed = {**blocks, "files": {**blocks["files"], name: {"size": 1, "blocks": ["0" * 32]}}}
        (published / remote.BLOCKS).write_text(json.dumps(changed))
        with pytest.raises(UserError, match="not that of a published corpus"):
            Corpus.open(f"file://{published}")
    assert not (tmp_path / "outside.idx").exists()


def test_a_disk_without_room_is_said_before_and_when_it_fills(
    published: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, and what comes once there is room is what was published."""
    url = f"file://{published}"
    usage = shutil.disk_usage(tmp_path)
    opened = Corpus.open(url)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=remote.ROOM + remote.BLOCK - 1))
        with pytest.raises(UserError, match="make room") as raised:
            everything(opened)
        full.setattr(remote, "ROOM", 0)
        full.setattr(shutil, "disk_usage", lambda _: usage)
        full.setattr(remote.os, "pwrite", lambda fd, data, at: len(data) - 1)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=r"No space left on device.*make room"):
            everything(opened)
    assert len(str(raised.value).splitlines()) == 1
    np.testing.assert_array_equal(everything(opened), everything(corpus))


def test_blocks_come_side_by_side(published: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks are asked for before either has come."""
    opened, both, one = Corpus.open(f"file://{published}"), threading.Barrier(2), remote.fetched

    def fetched(url: str, file: Any, index: int) -> bytes:
        if index in (1, 2):
            both.wait(timeout=60)
        return one(url, file, index)

    monkeypatch.setattr(remote, "fetched", fetched)
    np.testing.assert_array_equal(everything(opened), everything(corpus))

"""The tokens of a corpus are counted once, whatever the number of ranks, starts and stages."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus import counts
from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.corpus.indexed import IndexedTokens

OF = (800, 0.1, 7)  # vocabulary, held out, seed


@pytest.fixture
def copied(corpus_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus of which nothing is known."""
    monkeypatch.setattr(counts, "_known", {})
    shutil.copytree(corpus_path, tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus" / counts.FOLDER, ignore_errors=True)
    return Corpus.open(tmp_path / "corpus")


def forget(monkeypatch: pytest.MonkeyPatch, reads: bool) -> None:
    """Another process, which may read the text or must not."""
    monkeypatch.setattr(counts, "_known", {})
    if not reads:
        monkeypatch.setattr(IndexedTokens, "read", lambda *_: pytest.fail("the corpus was read again"))


def test_it_is_the_sum_over_the_training_documents(copied: Corpus) -> None:
    split = Split(copied.tokens.documents, 0.1, 7)
    ids = copied.read(*copied.tokens.document_ranges(split.training_documents(0, np.arange(split.training))))
    assert counts.training_tokens(copied, *OF) == len(copied.tokenizer.segmentation(800).apply(ids))


def test_it_is_counted_once(copied: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and in a later one."""
    first = counts.training_tokens(copied, *OF)
    assert counts.training_tokens(copied, 400, 0.1, 7) > first
    forget(monkeypatch, reads=False)
    assert counts.training_tokens(Corpus.open(copied.path), *OF) == first
    shutil.rmtree(copied.path / counts.FOLDER)
    assert counts.training_tokens(copied, *OF) == first


@pytest.mark.parametrize("damage", ["", "x", "1e3"])
def test_what_cannot_be_kept_or_read_is_counted(copied: Corpus, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    first = counts.training_tokens(copied, *OF)
    (kept,) = (copied.path / counts.FOLDER).iterdir()
    kept.write_text(damage)
    forget(monkeypatch, reads=True)
    assert counts.training_tokens(copied, *OF) == first
    shutil.rmtree(kept.parent)
    kept.parent.write_text("no folder can be made here")
    forget(monkeypatch, reads=True)
    assert counts.training_tokens(copied, *OF) == first

"""A corpus folder, and which of its documents are held out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.errors import UserError


def test_text_comes_back(corpus: Corpus, texts: list[str]) -> None:
    """Each document is its text and an eos; bytes are counted as in the text."""
    starts, lengths = corpus.tokens.document_ranges(np.arange(corpus.tokens.documents))
    for text, start, length in zip(texts, starts, lengths, strict=True):
        ids = corpus.read(np.array([start]), np.array([length]))
        assert ids[-1] == corpus.tokenizer.eos
        assert corpus.tokenizer.decode(ids[:-1]) == text.replace("\u2581", " ")
    assert corpus.description["bytes"] == sum(len(text.replace("\u2581", " ").encode()) for text in texts)


def test_unfinished_or_mixed_up(corpus_path: Path, tmp_path: Path) -> None:
    """Each message names the file."""
    with pytest.raises(UserError, match="is not a prepared corpus"):
        Corpus.open(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(corpus_path, folder)
    description = json.loads((folder / "corpus.json").read_text())
    for change, why in (
        ({"tokens": 1}, r"tokens\.idx has"),
        ({"tokenizer": "0"}, "is not the tokenizer of"),
        ({"format_version": 99}, "format 99, not 1"),
    ):
        (folder / "corpus.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(UserError, match=why):
            Corpus.open(folder)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=r"corpus\.json: damaged"):
        Corpus.open(folder)


def test_split() -> None:
    """Training and validation documents are all documents, in every epoch; epochs differ; seeds differ."""
    split = Split(1000, 0.05, seed=3)
    held_out = split.validation_documents()
    assert len(held_out) == 50
    epochs = [split.training_documents(epoch, np.arange(950)) for epoch in range(3)]
    for order in epochs:
        assert np.array_equal(np.sort(np.concatenate([held_out, order])), np.arange(1000))
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(Split(1000, 0.05, seed=4).validation_documents()) != set(held_out)


def test_split_of_too_little() -> None:
    """At least one document is held out and one is left."""
    assert Split(2, 0.001, 0).validation == 1
    with pytest.raises(UserError, match=r"has 1 document.*--document paragraph"):
        Split(1, 0.1, 0)
    with pytest.raises(UserError, match="between 0 and 1"):
        Split(100, 0.0, 0)

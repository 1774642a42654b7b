"""Token files: the same to Megatron-core and to us, in both directions; damage is noticed."""

from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.corpus.indexed import IndexedTokens, token_dtype, write_index
from pretrain.errors import UserError

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 10]], [[11], [12, 13, 14, 15], [0]]]  # of sentences
SENTENCES = [sentence for document in DOCUMENTS for sentence in document]


def write(prefix: Path, dtype: np.dtype) -> None:
    prefix.with_suffix(".bin").write_bytes(np.concatenate(SENTENCES).astype(dtype).tobytes())
    lengths = np.array([len(sentence) for sentence in SENTENCES])
    bounds = np.cumsum([0, *(len(document) for document in DOCUMENTS)])
    write_index(prefix.with_suffix(".idx"), lengths, bounds, dtype)


@pytest.mark.parametrize("vocab", [1000, 100_000])
def test_megatron_reads_ours(tmp_path: Path, vocab: int) -> None:
    """Documents, sentences and tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    write(tmp_path / "x", token_dtype(vocab))
    theirs = IndexedDataset(str(tmp_path / "x"))
    assert [sentence.tolist() for sentence in theirs] == SENTENCES
    assert theirs.document_indices.tolist() == [0, 2, 3, 6]
    assert theirs.index.dtype == token_dtype(vocab)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_we_read_megatrons(tmp_path: Path, dtype: type) -> None:
    """Documents as ranges, in any order."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=dtype)
    for document in DOCUMENTS:
        builder.add_document(np.concatenate(document), [len(sentence) for sentence in document])
    builder.finalize(str(tmp_path / "x.idx"))
    ours = IndexedTokens(tmp_path / "x")
    starts, lengths = ours.document_ranges(np.array([2, 0, 1]))
    assert lengths.tolist() == [6, 4, 2]
    assert ours.read(starts, lengths).tolist() == [11, 12, 13, 14, 15, 0, 5, 6, 7, 8, 9, 10]
    assert (ours.documents, ours.tokens) == (3, 12)


@pytest.mark.parametrize("name", ["x.bin", "x.idx"])
def test_cut_short(tmp_path: Path, name: str) -> None:
    """A file that lost its end, or all but a few bytes, is named."""
    for size in (-1, 10):
        write(tmp_path / "x", np.dtype(np.int32))
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(UserError, match=rf"{name}.*make the corpus again"):
            IndexedTokens(tmp_path / "x")
    file.unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        IndexedTokens(tmp_path / "x")


def test_another_format(tmp_path: Path) -> None:
    """Not Megatron's, or tokens of a type that no vocabulary has."""
    write(tmp_path / "x", np.dtype(np.int32))
    idx = tmp_path / "x.idx"
    raw = idx.read_bytes()
    for damaged in (b"TNTIDX" + raw[6:], raw[:17] + b"\x07" + raw[18:]):
        idx.write_bytes(damaged)
        with pytest.raises(UserError, match="not a Megatron index"):
            IndexedTokens(tmp_path / "x")


def test_damaged_content(corpus_path: Path, tmp_path: Path) -> None:
    """Places outside of the file and ids outside of the vocabulary end in an error, never in other text."""
    write(tmp_path / "x", np.dtype(np.int32))
    tokens = IndexedTokens(tmp_path / "x")
    with pytest.raises(UserError, match=r"x\.idx is damaged"):
        tokens.read(np.array([10]), np.array([5]))
    corpus = Corpus.open(corpus_path)
    raw = np.fromfile(corpus.tokens.bin_path, np.uint16)
    raw[3] = 60_000
    raw.tofile(tmp_path / "y.bin")
    (tmp_path / "y.idx").write_bytes(corpus.tokens.bin_path.with_suffix(".idx").read_bytes())
    damaged = Corpus(corpus.path, corpus.tokenizer, IndexedTokens(tmp_path / "y"), corpus.description)
    with pytest.raises(UserError, match=r"y\.bin is damaged"):
        damaged.read(np.array([0]), np.array([10]))

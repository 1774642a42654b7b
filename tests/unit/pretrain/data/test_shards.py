"""A corpus of shards reads like one of one file; a shard that is missing, cut or of another corpus is named."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.corpus.encoders import WordPieceEncoder
from pretrain.data.corpus.indexed import IndexedTokens, write_index
from pretrain.data.corpus.prepare import prepare
from pretrain.data.corpus.shards import FOLDER, edges_of
from pretrain.data.corpus.sources import Source
from pretrain.data.stream.stream import Stream
from pretrain.errors import UserError
from pretrain.families.bert.stream import BertCorpus, BertStream
from pretrain.runtime.files import hash_of


def cut(one: Path, several: Path, documents: Sequence[int]) -> None:
    """The same corpus with its documents cut into shards at these numbers."""
    tokens = IndexedTokens(one / "tokens")
    description = json.loads((one / "corpus.json").read_text())
    (several / FOLDER).mkdir(parents=True)
    shutil.copytree(one / "tokenizer", several / "tokenizer")
    description["shards"] = []
    for begin, end in zip([0, *documents], [*documents, tokens.documents], strict=True):
        prefix = several / FOLDER / f"{begin:05d}"
        first, last = tokens.bounds[begin], tokens.bounds[end]
        ids = tokens.read(*tokens.document_ranges(np.arange(begin, end)))
        prefix.with_suffix(".bin").write_bytes(ids.astype(tokens.dtype).tobytes())
        write_index(
            prefix.with_suffix(".idx"), tokens.lengths[first:last], tokens.bounds[begin : end + 1] - first, tokens.dtype
        )
        description["shards"].append(
            {
                "name": prefix.name,
                "documents": end - begin,
                "tokens": len(ids),
                "xxh3_128": hash_of(prefix.with_suffix(".bin")),
                "edges": edges_of(prefix),
            }
        )
    (several / "corpus.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def several(corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in shards of 1, 49, 100 and the other documents."""
    folder = tmp_path_factory.mktemp("shards") / "corpus"
    cut(corpus_path, folder, [1, 50, 150])
    return folder


def test_reads_like_one_file(corpus: Corpus, several: Path) -> None:
    """Any documents in any order, and the whole stream of training text."""
    sharded = Corpus.open(several)
    order = np.random.default_rng(0).permutation(corpus.tokens.documents)
    one, other = (c.tokens.document_ranges(order) for c in (corpus, sharded))
    assert np.array_equal(one, other)
    assert np.array_equal(corpus.read(*one), sharded.read(*other))
    takes = [Stream(c, vocab=c.tokenizer.size, seq_len=32, seed=1, validation=0.1).take(700) for c in (corpus, sharded)]
    assert np.array_equal(takes[0].tokens, takes[1].tokens)
    assert np.array_equal(takes[0].bytes, takes[1].bytes)


def test_documents_of_sentences(texts: list[str], tmp_path: Path) -> None:
    """BERT's samples of a corpus of shards are those of one file."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"One. {t} Two."}) + "\n" for t in texts))
    prepare(Source((tmp_path / "texts.jsonl",)), tmp_path / "one", WordPieceEncoder(vocab_size=400))
    cut(tmp_path / "one", tmp_path / "several", [3, 90])
    one, other = (
        BertStream(BertCorpus.open(tmp_path / name), vocab=400, seq_len=64, seed=2, validation=0.1).take(300)
        for name in ("one", "several")
    )
    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.next_sentence, other.next_sentence)


def test_damaged(several: Path, tmp_path: Path) -> None:
    """Missing, cut short, and the shard of another corpus with as many documents and tokens."""
    copy = tmp_path / "copy"
    shutil.copytree(several, copy)
    file = copy / FOLDER / "00050.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"00050\.bin has .* cut short"):
        Corpus.open(copy)
    file.write_bytes(data[::-1])
    with pytest.raises(UserError, match=r"00050\.bin is not the shard .* of another corpus"):
        Corpus.open(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"00050\.bin does not exist"):
        Corpus.open(copy)
    file.write_bytes(data)
    Corpus.open(copy)

"""The training stream against the text itself: nothing twice, nothing left out, the same however it is resumed."""

import itertools
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.stream import Position, Stream, read_window
from pretrain.data.tokenizers.merge_age import SPACE
from pretrain.errors import UserError

SEED, VALIDATION = 7, 0.1
EOS = b"\xff"  # how these tests spell it: a byte that UTF-8 never has


@pytest.fixture(scope="module")
def spelling(corpus: Corpus) -> list[bytes]:
    """The bytes that each piece stands for; the dummy prefix is a space."""
    pieces = [
        bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace(SPACE, " ").encode()
        for p in corpus.tokenizer.pieces
    ]
    pieces[corpus.tokenizer.eos] = EOS
    return pieces


@pytest.fixture(scope="module")
def epochs(corpus: Corpus, texts: list[str]) -> tuple[bytes, np.ndarray]:
    """Three epochs of training text as the stream must spell them, and which of its bytes are text."""
    split = Split(len(texts), VALIDATION, SEED)
    spelled, is_text = [], []
    for epoch in range(3):
        for document in split.training_documents(epoch, np.arange(split.training)):
            text = texts[document].replace(SPACE, " ").encode()
            spelled.append(b" " + text + EOS)
            is_text.append(np.r_[0, np.ones(len(text), int), 0])
    return b"".join(spelled), np.concatenate(is_text)


def stream(corpus: Corpus, **changes: object) -> Stream:
    options = {"vocab": 800, "seq_len": 16, "seed": SEED, "validation": VALIDATION, "window": 8}
    return Stream(corpus, **{**options, **changes})


@settings(max_examples=40, deadline=None)
@given(
    windows=st.lists(
        st.tuples(st.sampled_from([400, 512, 800, 1199, 1200]), st.integers(1, 3000)), min_size=1, max_size=12
    )
)
def test_growth_of_the_vocabulary(
    corpus: Corpus, spelling: list[bytes], epochs: tuple[bytes, np.ndarray], windows: list[tuple[int, int]]
) -> None:
    """Windows of any vocabularies and lengths, one behind the other, spell the corpus from beginning to end.

    In the same segmentation a window's first token is the last one's last. In another it is the token that holds the
    place where that began: it is never a target, so no byte is predicted twice.
    """
    reference, is_text = epochs
    split = Split(corpus.tokens.documents, VALIDATION, SEED)
    at, place, vocab_before = Position(), 0, 0
    for vocab, length in windows:
        window = read_window(corpus, split, vocab, at, 1, length)
        assert len(window.tokens) == length + 1
        words = [spelling[t] for t in window.tokens]
        back = next(b for b in range(len(words[0])) if reference.startswith(b"".join(words), place - b))
        assert back == 0 or vocab != vocab_before
        ends = place - back + np.cumsum([0, *map(len, words)])
        expected = [int(is_text[a:b].sum()) for a, b in itertools.pairwise(ends)]
        assert np.diff(window.bytes_before).tolist() == expected
        at, place, vocab_before = window.end, int(ends[-2]), vocab


def test_every_sequence_once(corpus: Corpus) -> None:
    """A window's samples are its sequences in another order, with the bytes of their targets."""
    drawn = stream(corpus).take(8)
    split = Split(corpus.tokens.documents, VALIDATION, SEED)
    window = read_window(corpus, split, 800, Position(), 8, 16)
    sequences = [window.tokens[16 * k : 16 * k + 17].tolist() for k in range(8)]
    sizes = [int(window.bytes_before[16 * k + 17] - window.bytes_before[16 * k + 1]) for k in range(8)]
    order = [sequences.index(sample.tolist()) for sample in drawn.tokens]
    assert sorted(order) == list(range(8))
    assert order != list(range(8))
    assert drawn.bytes.tolist() == [sizes[k] for k in order]


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.integers(0, 30), min_size=1, max_size=8), ranks=st.integers(1, 3))
def test_resumed_and_split(corpus: Corpus, parts: list[int], ranks: int) -> None:
    """However calls, restarts and ranks split it, the stream is bit for bit the same."""
    whole = stream(corpus).take(sum(parts))
    done, cursor = 0, None
    for n in parts:
        streams = [stream(corpus, cursor=cursor) for _ in range(ranks)]
        for rank, mine in enumerate(streams):
            batch = mine.take(n, rows=slice(rank, None, ranks))
            assert np.array_equal(batch.tokens, whole.tokens[done : done + n][rank::ranks])
            assert np.array_equal(batch.bytes, whole.bytes[done : done + n][rank::ranks])
        cursor = json.loads(json.dumps(streams[0].cursor))
        assert all(mine.cursor == cursor for mine in streams)
        done += n


def test_next_stage_draws_new_text(corpus: Corpus, spelling: list[bytes], epochs: tuple[bytes, np.ndarray]) -> None:
    """A stage with more pieces starts behind its parent's window, in the middle of a document."""
    parent = stream(corpus)
    parent.take(11)  # into the second window
    child = stream(corpus, vocab=1200, seq_len=32, cursor=parent.cursor)
    places = [
        epochs[0].find(b"".join(spelling[t] for t in sample))
        for source, n in ((parent, 16 - 11), (child, 8))
        for sample in source.take(n).tokens
    ]
    assert min(places) >= 0
    assert max(places[:5]) < min(places[5:])
    assert epochs[0][min(places[5:]) - 1 : min(places[5:])] != EOS


def test_no_waste_before_a_window(corpus: Corpus) -> None:
    """A parent that stopped between windows, or drew nothing, leaves nothing out."""
    parent = stream(corpus)
    assert stream(corpus, window=4, cursor=parent.cursor).cursor["token"] == 0
    parent.take(8)
    child = stream(corpus, vocab=1200, cursor=parent.cursor)
    place = ("epoch", "document", "token", "byte")
    assert [child.cursor[key] for key in place] == [parent.cursor[key] for key in place]


def test_end_of_the_corpus(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    """The next epoch begins with a warning, in another order; the 11th to the 19th begin without one."""
    source = stream(corpus, seq_len=64, window=32)
    with caplog.at_level(logging.WARNING):
        while source.cursor["epoch"] < 21:
            source.take(32)
    said = [record.getMessage().split("read: ")[1] for record in caplog.records]
    assert said == [f"epoch {number} begins" for number in (*range(2, 11), 20)]


def test_a_tiny_corpus_is_named_once(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    source = stream(corpus, seq_len=512, window=1024, validation=0.98)
    with caplog.at_level(logging.WARNING):
        source.take(3000)
    (record,) = caplog.records
    assert "is tiny: a window of 1024 samples (data.window) has its" in record.getMessage()


def test_another_corpus_or_split(corpus: Corpus) -> None:
    """A cursor is refused where it would mean other text."""
    cursor = stream(corpus).cursor
    for change in ({"seed": 8}, {"validation": 0.2}):
        with pytest.raises(UserError, match="cursor is not of"):
            stream(corpus, cursor=cursor, **change)
    with pytest.raises(UserError, match="alone are"):
        stream(corpus, vocab=100)

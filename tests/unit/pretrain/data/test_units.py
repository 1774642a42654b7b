"""Text whose labels are a unit ahead, some of it padded: nothing is left out, and padding follows from the place."""

from __future__ import annotations

import numpy as np

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.stream.stream import Position, read_window
from pretrain.data.stream.validation import probe, validation_set
from pretrain.families.convolution_attention.stream import PADDED, UnitStream

HOW = {"vocab": 800, "seed": 7, "validation": 0.1}
LENGTH, AHEAD, WINDOW = 48, 16, 8


def stream(corpus: Corpus, cursor: dict[str, object] | None = None) -> UnitStream:
    return UnitStream(corpus, ahead=AHEAD, seq_len=LENGTH, window=WINDOW, cursor=cursor, **HOW)  # type: ignore[arg-type]


def test_labels_are_the_text_a_unit_ahead(corpus: Corpus) -> None:
    """Each sample is a stretch of the text from its own first token on, behind its padding; its labels are as many as
    its places, and its bytes are theirs."""
    text = stream(corpus)
    whole = read_window(corpus, text.split, 800, Position(), WINDOW + 1, LENGTH)
    batch = text.take(WINDOW)
    starts = []
    for tokens, padding, size in zip(batch.tokens, batch.padding, batch.bytes, strict=True):
        assert 0 <= padding < AHEAD
        here = tokens[padding:]
        (start,) = [at for at in range(0, WINDOW * LENGTH, LENGTH) if (whole.tokens[at : at + len(here)] == here).all()]
        starts.append(start)
        first = start - padding + AHEAD
        assert size == whole.bytes_before[first + LENGTH] - whole.bytes_before[first]
    assert sorted(starts) == list(range(0, WINDOW * LENGTH, LENGTH))


def test_some_are_padded_and_the_same_ones_after_a_resume(corpus: Corpus) -> None:
    text = stream(corpus)
    first = text.take(11)
    cursor = text.cursor
    rest = text.take(400)
    again = stream(corpus, cursor)
    parts = [again.take(n) for n in (1, 99, 300)]
    assert np.array_equal(np.concatenate([part.padding for part in parts]), rest.padding)
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), rest.tokens)
    padding = np.concatenate((first.padding, rest.padding))
    assert abs((padding > 0).mean() - PADDED) < 0.06
    assert len(set(padding)) > AHEAD // 2


def test_held_out_text_is_a_label_once(corpus: Corpus) -> None:
    near, far = (validation_set(corpus, seq_len=LENGTH, ahead=ahead, **HOW) for ahead in (1, AHEAD))  # type: ignore[arg-type]
    assert far.tokens.shape == (len(near.tokens), LENGTH + AHEAD)
    assert np.array_equal(far.mask, near.mask)
    assert np.array_equal(far.tokens[:, AHEAD:], near.tokens[:, 1:])
    assert far.bytes == near.bytes
    assert (far.tokens[0, :AHEAD] == corpus.tokenizer.eos).all()
    assert probe(corpus, 3, seq_len=LENGTH, ahead=AHEAD, **HOW).shape == (3, LENGTH + AHEAD)  # type: ignore[arg-type]

"""The training text: every document once an epoch, in sequences of a stage's segmentation, from a cursor.

The documents of an epoch are permuted by (seed, epoch) and concatenated. A window is the next ``window`` sequences of
that (see ``windows``); its place is

    epoch, document   the position of the document in the epoch's permutation
    token, byte       the token in the document (of the full vocabulary), and the byte in that token's text

A place is a byte of the text and so the same in every segmentation. If a piece of the next stage's larger vocabulary
lies across it, the part beyond is no target in either stage; nothing is a target twice.

Sequences overlap by one token: the last target is the next sequence's first input.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.windows import B, W, WindowedStream

WINDOW = 256  # sequences


@dataclass(frozen=True)
class Position:
    """A place in the training text, as the module's docstring says."""

    epoch: int = 0
    document: int = 0
    token: int = 0
    byte: int = 0


@dataclass(frozen=True)
class Batch:
    """n sequences. ``tokens``: int64 [n, seq_len + 1], inputs and targets overlapping; ``bytes``: int64 [n], the bytes
    of text that the targets of each stand for."""

    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """``tokens``: int32 [sequences * seq_len + 1]; ``bytes_before``: int64, one longer, the bytes of text before each
    token and before the end."""

    sequences: int
    end: Position
    tokens: NDArray[np.int32]
    bytes_before: NDArray[np.int64]

    def __len__(self) -> int:
        return self.sequences


class TextStream(WindowedStream[Position, W, B]):
    """The training text of a stage, in windows of some kind: ``Stream(corpus, vocab=4096, seq_len=1024, seed=0,
    validation=0.01)``. ``kind``: what the cursor says of the windows beside their sizes."""

    kind: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        corpus: Corpus,
        *,
        vocab: int,
        seq_len: int,
        seed: int,
        validation: float,
        cursor: dict[str, Any] | None = None,
        window: int = WINDOW,
    ) -> None:
        """``validation`` is the fraction of documents held out. ``cursor`` is a parent's or an earlier run's.

        Raises UserError if the vocabulary cannot be cut there, the documents are too few, or the cursor is of another
        corpus, seed or validation fraction.
        """
        corpus.tokenizer.legal(vocab)
        self.corpus, self.vocab, self.seq_len = corpus, vocab, seq_len
        cut = {"vocab": vocab, "seq_len": seq_len, "window": window, **self.kind}
        super().__init__(corpus, Position, cut, seed=seed, validation=validation, cursor=cursor)


class Stream(TextStream[Window, Batch]):
    """The training text in sequences."""

    def read(self, start: Position, size: int) -> Window:
        """Reads the ``size`` sequences from a place on."""
        return read_window(self.corpus, self.split, self.vocab, start, size, self.seq_len)

    def samples(self, window: Window, which: NDArray[np.int64]) -> Batch:
        """Cuts the sequences with these numbers out of a window."""
        first = which * self.seq_len
        tokens = window.tokens[first[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)
        return Batch(tokens, window.bytes_before[first + self.seq_len + 1] - window.bytes_before[first + 1])


def read_window(corpus: Corpus, split: Split, vocab: int, start: Position, sequences: int, seq_len: int) -> Window:
    """The sequences from the stage token that holds ``start``; the window ends where the last token starts."""
    length = sequences * seq_len
    tokenizer, segmentation = corpus.tokenizer, corpus.tokenizer.segmentation(vocab)
    tokens: list[NDArray[np.int32]] = []
    sizes: list[NDArray[np.int64]] = []
    have, at = 0, start
    while True:
        ids, counts = full_tokens(corpus, split, at, length + 1 - have)
        pieces = segmentation.apply(ids)
        lengths = segmentation.lengths[ids].astype(np.int64)
        # The dummy prefix counts as a byte in a place, but not in the text: so no two tokens share a place.
        raw = tokenizer.piece_bytes[pieces].astype(np.int64)
        first_ids = (np.cumsum(counts) - counts)[1 if at.token else 0 :]
        first_pieces = (np.cumsum(lengths) - lengths)[first_ids]
        text = raw.copy()
        text[first_pieces] -= tokenizer.prefix_bytes
        skip = int(np.searchsorted(np.cumsum(raw[: lengths[0]]), at.byte, side="right")) if at.byte else 0
        tokens.append(pieces[skip:])
        sizes.append(text[skip:])
        if have + len(pieces) - skip > length:
            break
        have += len(pieces) - skip
        at = next_documents(split, at, len(counts))

    last_piece = skip + length - have
    piece_ends, id_ends = np.cumsum(lengths), np.cumsum(counts)
    last_id = int(np.searchsorted(piece_ends, last_piece, side="right"))
    nth = int(np.searchsorted(id_ends, last_id, side="right"))
    end = Position(
        epoch=at.epoch,
        document=at.document + nth,
        token=last_id - int(id_ends[nth] - counts[nth]) + (at.token if nth == 0 else 0),
        byte=int(raw[piece_ends[last_id] - lengths[last_id] : last_piece].sum()),
    )
    size = np.concatenate(sizes)[: length + 1]
    return Window(sequences, end, np.concatenate(tokens)[: length + 1], np.concatenate([[0], np.cumsum(size)]))


def full_tokens(corpus: Corpus, split: Split, at: Position, need: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Full-vocabulary tokens from a place on: ``need`` of them, or fewer but to the ends of one or more documents.

    Gives the ids (int32) and how many of them are each document's. They re-segment to no fewer tokens.
    """
    mean = max(1, corpus.tokens.tokens // corpus.tokens.documents)
    last = min(split.training, at.document + need // mean + 2)
    starts, counts = corpus.tokens.document_ranges(split.training_documents(at.epoch, np.arange(at.document, last)))
    starts[0] += at.token
    counts[0] -= at.token
    enough = int(np.searchsorted(np.cumsum(counts), need)) + 1
    starts, counts = starts[:enough], counts[:enough]
    counts[-1] -= max(0, int(counts.sum()) - need)
    return corpus.read(starts, counts), counts


def next_documents(split: Split, at: Position, read: int) -> Position:
    if at.document + read < split.training:
        return Position(at.epoch, at.document + read)
    return Position(at.epoch + 1)

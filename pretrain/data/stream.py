"""The training text: every document once an epoch, in sequences of a stage's segmentation, from a cursor.

The documents of an epoch are permuted by (seed, epoch) and concatenated. The stream is cut into *windows* of ``window``
sequences; a window's sequences are permuted by its position. So the whole state is a cursor: where the window starts,
and how many of its sequences were drawn. It is a dict for JSON:

    epoch, document, token, byte   where the window starts: the position of the document in the epoch's permutation, the
                                   token in it (of the full vocabulary), and the byte in that token's text
    drawn                          sequences drawn from the window
    next                           where the following window starts; null while nothing of this one is drawn
    vocab, seq_len, window         what the window was cut with
    corpus                         hash of the corpus and of the split into training and validation

A stage with another vocabulary or sequence length goes on where its parent's window ends, at a place that is a byte of
the text and so the same in every segmentation. What is lost is the undrawn rest of that window and, if a piece of the
larger vocabulary lies across the place, the part of it that is beyond; nothing is drawn twice.

Sequences overlap by one token: the last target is the next sequence's first input.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pretrain.data.corpus import Corpus, Split
from pretrain.data.permute import permuted
from pretrain.errors import UserError

log = logging.getLogger(__name__)

WINDOW = 256  # sequences


@dataclass(frozen=True)
class Position:
    """A place in the training text; see above."""

    epoch: int = 0
    document: int = 0
    token: int = 0
    byte: int = 0


@dataclass(frozen=True)
class Batch:
    """``tokens``: int64 [n, seq_len + 1], inputs and targets overlapping; ``bytes``: int64 [n], of the targets."""

    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """``tokens``: int32 [window * seq_len + 1]; ``bytes_before``: int64 [one more], of text before each, and all."""

    start: Position
    end: Position
    tokens: NDArray[np.int32]
    bytes_before: NDArray[np.int64]


class Stream:
    """``take`` gives the next samples, ``cursor`` says where it is."""

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
        """``validation`` is the fraction of documents held out. ``cursor`` is a parent's or an earlier run's, or None
        for the start.

        Raises UserError if the vocabulary cannot be cut there, the documents are too few, or the cursor is of another
        corpus, seed or validation fraction.
        """
        corpus.tokenizer.legal(vocab)
        self.corpus, self.vocab, self.seq_len, self._size = corpus, vocab, seq_len, window
        self._cut = {"vocab": vocab, "seq_len": seq_len, "window": window}
        self.split = Split(corpus.tokens.documents, validation, seed)
        self._seed = seed
        self._identity = xxhash.xxh3_64_hexdigest(f"{corpus.hash} {seed} {validation}".encode())
        self._go(Position(), 0)
        if cursor is not None:
            self._seek(cursor)

    def _go(self, start: Position, drawn: int) -> None:
        self._start, self._drawn = start, drawn
        self._window: Window | None = None
        self._next: Position | None = None
        self._order = permuted(np.arange(self._size), self._size, self._seed, *asdict(start).values())

    def _seek(self, cursor: dict[str, Any]) -> None:
        if cursor["corpus"] != self._identity:
            raise UserError(
                f"the data cursor is not of {self.corpus.path}: that corpus, the seed or the validation fraction"
                " has changed since the checkpoint was written; put them back, or start the stage without a parent"
            )
        same = all(cursor[key] == value for key, value in self._cut.items())
        if same or cursor["next"] is None:
            self._go(
                Position(cursor["epoch"], cursor["document"], cursor["token"], cursor["byte"]),
                cursor["drawn"] if same else 0,
            )
            self._next = Position(**cursor["next"]) if cursor["next"] else None
        else:
            self._go(Position(**cursor["next"]), 0)

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next sample comes from, for JSON: a stream made with it gives the same samples."""
        return {
            **asdict(self._start),
            "drawn": self._drawn,
            "next": asdict(self._next) if self._next else None,
            **self._cut,
            "corpus": self._identity,
        }

    def take(self, n: int, rows: slice = slice(None)) -> Batch:
        """The next n samples, of which only ``rows`` (a slice of range(n)) are made: a data-parallel rank's own.

        The cursor moves by n whatever the rows, and the samples do not depend on how calls split them.
        """
        wanted = np.zeros(n, dtype=np.bool_)
        wanted[rows] = True
        batches: list[Batch] = []
        done = 0
        while done < n:
            now = min(n - done, self._size - self._drawn)
            mine = wanted[done : done + now]
            window = self._read()
            batches.append(self._samples(window, self._order[self._drawn : self._drawn + now][mine]))
            done += now
            self._drawn += now
            self._next = window.end
            if self._drawn == self._size:
                self._go(window.end, 0)
        return Batch(
            np.concatenate([b.tokens for b in batches] or [np.empty((0, self.seq_len + 1), np.int64)]),
            np.concatenate([b.bytes for b in batches] or [np.empty(0, np.int64)]),
        )

    def _samples(self, window: Window, sequences: NDArray[np.int64]) -> Batch:
        first = sequences * self.seq_len
        tokens = window.tokens[first[:, None] + np.arange(self.seq_len + 1)].astype(np.int64)
        return Batch(tokens, window.bytes_before[first + self.seq_len + 1] - window.bytes_before[first + 1])

    def _read(self) -> Window:
        if self._window is None:
            self._window = read_window(self.corpus, self.split, self.vocab, self._start, self._size * self.seq_len)
            if self._next not in (None, self._window.end):
                raise UserError(
                    f"{self.corpus.path} is not what it was when the checkpoint was written: its text ends elsewhere"
                )
        return self._window


def read_window(corpus: Corpus, split: Split, vocab: int, start: Position, length: int) -> Window:
    """The ``length`` + 1 stage tokens from the one that holds ``start``; the window ends where the last one starts."""
    tokenizer, segmentation = corpus.tokenizer, corpus.tokenizer.segmentation(vocab)
    tokens: list[NDArray[np.int32]] = []
    sizes: list[NDArray[np.int64]] = []
    have, at = 0, start
    while True:
        ids, counts = _full_tokens(corpus, split, at, length + 1 - have)
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
        at = _next_documents(split, at, len(counts))

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
    return Window(start, end, np.concatenate(tokens)[: length + 1], np.concatenate([[0], np.cumsum(size)]))


def _full_tokens(corpus: Corpus, split: Split, at: Position, need: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
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


def _next_documents(split: Split, at: Position, read: int) -> Position:
    if at.document + read < split.training:
        return Position(at.epoch, at.document + read)
    log.warning("all %d training documents were read: epoch %d begins", split.training, at.epoch + 2)
    return Position(at.epoch + 1)

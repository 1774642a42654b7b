"""The documents of a corpus as lanes take them (see ``lanes``): in the order of the epoch, each begun by one lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.stream import Position
from pretrain.data.stream.windows import check_cursor, identity, say_epoch

AHEAD = 8  # samples' worth of a document that a lane reads at a time


@dataclass(frozen=True)
class Part:
    """A part of a document in a stage's segmentation, from some token of the full vocabulary on.

    tokens: int32; text: int64, the bytes of text that each stands for; raw: the same with the dummy prefix; ends:
    where each token of the full vocabulary ends in these; lengths: how many of these it is. begin: the place of the
    first. left: tokens of the full vocabulary behind the part, to the document's end.
    """

    tokens: NDArray[np.int32]
    text: NDArray[np.int64]
    raw: NDArray[np.int64]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    begin: Position
    left: int

    def place(self, at: int) -> Position:
        """The place of token number `at`."""
        nth = int(np.searchsorted(self.ends, at, side="right"))
        byte = int(self.raw[self.ends[nth] - self.lengths[nth] : at].sum())
        return Position(self.begin.epoch, self.begin.document, self.begin.token + nth, byte)

    def number(self, place: Position) -> int:
        """The number of the token that holds a place."""
        nth = place.token - self.begin.token
        first = int(self.ends[nth] - self.lengths[nth])
        inside = np.cumsum(self.raw[first : self.ends[nth]])
        return first + (int(np.searchsorted(inside, place.byte, side="right")) if place.byte else 0)


@dataclass
class Lane:
    """The part that a lane reads, and the number in it of its last label; -1: it has read nothing of it."""

    queue: Queue
    part: Part
    at: int

    @property
    def place(self) -> Position:
        """That of its last label."""
        return self.part.place(self.at)

    @property
    def rest(self) -> int:
        """How many tokens of the full vocabulary its document has behind that which holds its last label."""
        nth = int(np.searchsorted(self.part.ends, self.at, side="right")) if self.at >= 0 else -1
        return self.part.left + len(self.part.ends) - nth - 1


class Queue:
    """A corpus and its next document that no lane has begun.

    epochs: after which its text is over; None: it begins its next one. read: labels that lanes have taken of it, since
    whoever counts them has set it to 0. open: the rest of all documents that were begun, see `Lane.rest`.
    """

    epochs: int | None = None

    def __init__(self, corpus: Corpus, *, vocab: int, seq_len: int, seed: int, validation: float) -> None:
        self.corpus, self.vocab, self.seq_len = corpus, vocab, seq_len
        self._segmentation = corpus.tokenizer.segmentation(vocab)
        self.split = Split(corpus.tokens.documents, validation, seed)
        self.identity = identity(corpus, seed, validation)
        self.next = Position()
        self.read = self.open = 0

    def seek(self, cursor: Mapping[str, Any]) -> tuple[list[Lane], list[Position]]:
        """Go on at a cursor; gives its lanes, and the places that none goes on from yet."""
        check_cursor(cursor, self.identity, self.corpus.path)
        if "lanes" in cursor:
            self.next = Position(cursor["epoch"], cursor["document"])
            lanes = [self.at(Position(*place)) for place in cursor["lanes"]]
            return lanes, [Position(*place) for place in cursor["waiting"]]
        place = cursor["next"] or {key: cursor[key] for key in ("epoch", "document", "token", "byte")}
        place = Position(**place)
        begins = place == Position(place.epoch, place.document)
        if begins and (cursor.get("packing") or place == Position()):
            self.next = place
            return [], []
        self.next = self._behind(place)  # what holds the place was a label
        return [], [place]

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next document is, for JSON."""
        return self.said([], [])

    def said(self, lanes: Sequence[Lane], waiting: Sequence[Position]) -> dict[str, Any]:
        """The cursor of these lanes and places that wait, which are of this corpus."""
        return {
            "epoch": self.next.epoch,
            "document": self.next.document,
            "token": 0,
            "byte": 0,
            "drawn": 0,
            "next": None,
            "vocab": self.vocab,
            "seq_len": self.seq_len,
            "lanes": [list(astuple(lane.place)) for lane in lanes],
            "waiting": [list(astuple(place)) for place in waiting],
            "corpus": self.identity,
            "tokenizer": self.corpus.tokenizer.hash,
        }

    def ready(self) -> int:
        """Whether there is a document to begin: 0 where all the epochs that are wanted were begun."""
        return int(self.epochs is None or self.next.epoch < self.epochs)

    def begin(self) -> Lane:
        """A lane at the beginning of the next document."""
        begin, self.next = self.next, self._behind(self.next)
        if self.next.epoch > begin.epoch and self.ready():
            say_epoch(self.next.epoch, self.split.training, self.corpus.path)
        return Lane(self, self.part(begin, AHEAD * self.seq_len + 1), -1)

    def _behind(self, place: Position) -> Position:
        """The beginning of the document behind that of a place."""
        last = place.document + 1 == self.split.training
        return Position(place.epoch + 1) if last else Position(place.epoch, place.document + 1)

    def at(self, place: Position) -> Lane:
        """A lane at a place; in another segmentation than it was made in, its last label is what holds the place."""
        part = self.part(place, AHEAD * self.seq_len + 1)
        return Lane(self, part, part.number(place))

    def rest(self, place: Position) -> int:
        """That of a lane at a place."""
        return self._range(place)[1] - 1

    def _range(self, place: Position) -> tuple[int, int]:
        """Where a document is from the token of a place on, and how many tokens of the full vocabulary that is."""
        document = self.split.training_documents(place.epoch, np.array([place.document]))
        starts, counts = self.corpus.tokens.document_ranges(document)
        return int(starts[0]) + place.token, int(counts[0]) - place.token

    def part(self, place: Position, most: int) -> Part:
        """The next part of a document, at most so many of the full vocabulary's tokens from that of a place on."""
        start, rest = self._range(place)
        count = min(rest, most)
        ids = self.corpus.read(np.array([start]), np.array([count]))
        tokens, lengths = self._segmentation.apply(ids), self._segmentation.lengths[ids].astype(np.int64)
        raw = self.corpus.tokenizer.piece_bytes[tokens].astype(np.int64)
        text = raw.copy()
        if not place.token:
            text[0] -= self.corpus.tokenizer.prefix_bytes
        begin = Position(place.epoch, place.document, place.token)
        return Part(tokens, text, raw, np.cumsum(lengths), lengths, begin, rest - count)

"""The training text in lanes: row i of every global batch goes on where row i of the one before it has ended.

That is what a model with a memory needs (Dai et al. 2019, "Transformer-XL", section 3.2). A lane reads a document to
its end, then the next one that no lane has begun, in the permutation of the epoch (see `stream`). So every document is
read once an epoch, by one lane, and nothing depends on how many documents, lanes or ranks there are.

Where a batch has more rows than the one before it, the new lanes begin the next documents. Where it has fewer, the
places of the lanes that end are kept, and whichever lane needs text first goes on there: nothing is lost or repeated.

A lane's place is that of its last label, which is its next input; a lane that begins has the tokenizer's eos as its
first input. What is drawn depends on the seed and the sizes of the batches before. The cursor says, for JSON:

    epoch, document    the next document that no lane has begun, by its position in the epoch's permutation
    lanes              the place of each lane: [epoch, document, token, byte], see `stream`
    waiting            the places that no lane goes on from yet
    vocab, seq_len, corpus, tokenizer    see `windows`

A stage without lanes that follows one goes on with the next document: what its lanes had not read to the end is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.stream import Batch, Position
from pretrain.data.stream.windows import check_cursor, identity, say_epoch

AHEAD = 8  # samples' worth of a document that a lane reads at a time


@dataclass(frozen=True)
class _Part:
    """A part of a document in a stage's segmentation, from some token of the full vocabulary on.

    tokens: int32; text: int64, the bytes of text that each stands for; raw: the same with the dummy prefix; ends:
    where each token of the full vocabulary ends in these; lengths: how many of these it is. begin: the place of the
    first. whole: whether it reaches the document's end.
    """

    tokens: NDArray[np.int32]
    text: NDArray[np.int64]
    raw: NDArray[np.int64]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]
    begin: Position
    whole: bool

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
class _Lane:
    """The part that a lane reads, and the number in it of its last label; -1: it has read nothing of it."""

    part: _Part
    at: int

    @property
    def place(self) -> Position:
        return self.part.place(self.at)


class LaneStream:
    """The training text of a stage in lanes; see the module's docstring."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        vocab: int,
        seq_len: int,
        seed: int,
        validation: float,
        cursor: Mapping[str, Any] | None = None,
    ) -> None:
        """`validation` is the fraction of documents held out. cursor: a parent's or an earlier run's, of lanes or not.

        Raises UserError if the vocabulary cannot be cut there, the documents are too few, or the cursor is of another
        corpus, seed or validation fraction.
        """
        self.corpus, self.vocab, self.seq_len = corpus, vocab, seq_len
        self._segmentation = corpus.tokenizer.segmentation(vocab)
        self.split = Split(corpus.tokens.documents, validation, seed)
        self._identity = identity(corpus, seed, validation)
        self._next, self._lanes, self._waiting = Position(), list[_Lane](), list[Position]()
        if cursor is not None:
            check_cursor(cursor, self._identity, corpus.path)
            self._seek(cursor)

    def _seek(self, cursor: Mapping[str, Any]) -> None:
        if "lanes" in cursor:
            self._next = Position(cursor["epoch"], cursor["document"])
            self._waiting = [Position(*place) for place in cursor["waiting"]]
            self._lanes = [self._from(Position(*place)) for place in cursor["lanes"]]
            return
        place = cursor["next"] or {key: cursor[key] for key in ("epoch", "document", "token", "byte")}
        place = Position(**place)
        begins = place == Position(place.epoch, place.document)
        if begins and (cursor.get("packing") or place == Position()):
            self._next = place
        else:  # what holds the place was a label
            self._next, self._waiting = self._behind(place), [place]

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next samples come from, for JSON: a stream made with it gives the same samples."""
        return {
            "epoch": self._next.epoch,
            "document": self._next.document,
            "token": 0,
            "byte": 0,
            "drawn": 0,
            "next": None,
            "vocab": self.vocab,
            "seq_len": self.seq_len,
            "lanes": [list(astuple(lane.place)) for lane in self._lanes],
            "waiting": [list(astuple(place)) for place in self._waiting],
            "corpus": self._identity,
            "tokenizer": self.corpus.tokenizer.hash,
        }

    def take(self, n: int) -> Batch:
        """The next sample of each of n lanes."""
        self._waiting += [lane.place for lane in self._lanes[n:]]
        del self._lanes[n:]
        tokens, sizes = np.empty((n, self.seq_len + 1), dtype=np.int64), np.empty(n, dtype=np.int64)
        for row in range(n):
            if row == len(self._lanes):
                self._lanes.append(self._dealt())
            sizes[row] = self._fill(self._lanes[row], tokens[row])
        return Batch(tokens, sizes)

    def past(self, length: int) -> list[NDArray[np.int32]]:
        """Of each lane the tokens before its next input, the last so many of its document or as many as there are."""
        texts = []
        for place in (lane.place for lane in self._lanes):
            first = max(0, place.token - length)  # of the full vocabulary, each of which is a token here at least
            part = self._read(Position(place.epoch, place.document, first), place.token - first + 1)
            at = part.number(place)
            texts.append(part.tokens[max(0, at - length) : at])
        return texts

    def _fill(self, lane: _Lane, out: NDArray[np.int64]) -> int:
        """A lane's next sample, into its row; how many bytes of text its labels stand for."""
        out[0] = lane.part.tokens[lane.at] if lane.at >= 0 else self.corpus.tokenizer.eos
        done, size = 1, 0
        while done < len(out):
            first = lane.at + 1
            if first == len(lane.part.tokens):
                following = self._dealt() if lane.part.whole else self._from(lane.place)
                lane.part, lane.at = following.part, following.at
                continue
            count = min(len(lane.part.tokens) - first, len(out) - done)
            out[done : done + count] = lane.part.tokens[first : first + count]
            size += int(lane.part.text[first : first + count].sum())
            done, lane.at = done + count, lane.at + count
        return size

    def _dealt(self) -> _Lane:
        """What the next lane reads that needs text."""
        if self._waiting:
            return self._from(self._waiting.pop(0))
        begin, self._next = self._next, self._behind(self._next)
        if self._next.epoch > begin.epoch:
            say_epoch(self._next.epoch, self.split.training, self.corpus.path)
        return _Lane(self._read(begin, AHEAD * self.seq_len + 1), -1)

    def _behind(self, place: Position) -> Position:
        """The beginning of the document behind that of a place."""
        last = place.document + 1 == self.split.training
        return Position(place.epoch + 1) if last else Position(place.epoch, place.document + 1)

    def _from(self, place: Position) -> _Lane:
        """A lane at a place; in another segmentation than it was made in, its last label is what holds the place."""
        part = self._read(place, AHEAD * self.seq_len + 1)
        return _Lane(part, part.number(place))

    def _read(self, place: Position, most: int) -> _Part:
        """The next part of a document, at most so many of the full vocabulary's tokens from that of a place on."""
        document = self.split.training_documents(place.epoch, np.array([place.document]))
        starts, counts = self.corpus.tokens.document_ranges(document)
        rest = int(counts[0]) - place.token
        count = min(rest, most)
        ids = self.corpus.read(starts + place.token, np.array([count]))
        tokens, lengths = self._segmentation.apply(ids), self._segmentation.lengths[ids].astype(np.int64)
        raw = self.corpus.tokenizer.piece_bytes[tokens].astype(np.int64)
        text = raw.copy()
        if not place.token:
            text[0] -= self.corpus.tokenizer.prefix_bytes
        begin = Position(place.epoch, place.document, place.token)
        return _Part(tokens, text, raw, np.cumsum(lengths), lengths, begin, count == rest)

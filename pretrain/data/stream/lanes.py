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
For several corpora see `mixed_lanes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.stream.queue import Lane, Queue
from pretrain.data.stream.stream import Batch, Position


class Lanes:
    """Lanes that read documents to their ends, each the next one from whichever queue.

    rows: the lane of each row, None: it begins a document when it is read. waiting: places that no lane goes on from
    yet. Both count as open with their queues.
    """

    def __init__(
        self,
        begin: Callable[[], Lane],
        rows: Iterable[Lane | None],
        waiting: Iterable[tuple[Queue, Position]],
        *,
        seq_len: int,
        eos: int,
    ) -> None:
        """begin: a lane that begins the next document. eos: the first input of a lane that begins."""
        self._begin, self._seq_len, self._eos = begin, seq_len, eos
        self.rows, self.waiting = list(rows), list(waiting)
        for lane in self.lanes:
            lane.queue.open += lane.rest
        for queue, place in self.waiting:
            queue.open += queue.rest(place)

    @property
    def lanes(self) -> list[Lane]:
        """Those that have a place."""
        return [lane for lane in self.rows if lane]

    def take(self, n: int) -> Batch:
        """The next sample of each of n lanes."""
        self.waiting += [(lane.queue, lane.place) for lane in self.rows[n:] if lane]
        self.rows = [*self.rows[:n], *[None] * (n - len(self.rows))]
        tokens, sizes = np.empty((n, self._seq_len + 1), dtype=np.int64), np.empty(n, dtype=np.int64)
        for row in range(n):
            lane = self.rows[row]
            if lane is None:
                lane = self.rows[row] = self._dealt()
            else:
                lane.queue.open -= lane.rest
            sizes[row] = self._fill(lane, tokens[row])
            lane.queue.open += lane.rest
        return Batch(tokens, sizes)

    def past(self, length: int) -> list[NDArray[np.int32]]:
        """Of each lane the tokens before its next input, the last so many of its document or as many as there are."""
        texts = []
        for lane in self.rows:
            if lane is None:
                texts.append(np.empty(0, dtype=np.int32))
                continue
            place = lane.place
            first = max(0, place.token - length)  # of the full vocabulary, each of which is a token here at least
            part = lane.queue.part(Position(place.epoch, place.document, first), place.token - first + 1)
            at = part.number(place)
            texts.append(part.tokens[max(0, at - length) : at])
        return texts

    def _fill(self, lane: Lane, out: NDArray[np.int64]) -> int:
        """A lane's next sample, into its row; how many bytes of text its labels stand for."""
        out[0] = lane.part.tokens[lane.at] if lane.at >= 0 else self._eos
        done, size = 1, 0
        while done < len(out):
            first = lane.at + 1
            if first == len(lane.part.tokens):
                following = lane.queue.at(lane.place) if lane.part.left else self._dealt()
                lane.queue, lane.part, lane.at = following.queue, following.part, following.at
                continue
            count = min(len(lane.part.tokens) - first, len(out) - done)
            out[done : done + count] = lane.part.tokens[first : first + count]
            size += int(lane.part.text[first : first + count].sum())
            lane.queue.read += count
            done, lane.at = done + count, lane.at + count
        return size

    def _dealt(self) -> Lane:
        """What the next lane reads that needs text; while it is filled, it does not count as open."""
        if not self.waiting:
            return self._begin()
        queue, place = self.waiting.pop(0)
        lane = queue.at(place)
        queue.open -= lane.rest
        return lane


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
        self.seq_len = seq_len
        self.queue = Queue(corpus, vocab=vocab, seq_len=seq_len, seed=seed, validation=validation)
        rows: Sequence[Lane] = []
        places: Sequence[Position] = []
        if cursor is not None:
            rows, places = self.queue.seek(cursor)
        waiting = [(self.queue, place) for place in places]
        self.lanes = Lanes(self.queue.begin, rows, waiting, seq_len=seq_len, eos=corpus.tokenizer.eos)

    @property
    def split(self) -> Split:
        """The corpus's into training and validation."""
        return self.queue.split

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next samples come from, for JSON: a stream made with it gives the same samples."""
        return self.queue.said(self.lanes.lanes, [place for _, place in self.lanes.waiting])

    def take(self, n: int) -> Batch:
        """The next sample of each of n lanes."""
        return self.lanes.take(n)

    def past(self, length: int) -> list[NDArray[np.int32]]:
        """See `Lanes.past`."""
        return self.lanes.past(length)

"""Several corpora in lanes: each lane reads one source's document to its end, then one of the source that is due.

Due is the source that is farthest behind its part of the tokens that were read since the weights are these, with what
lanes and places that wait still have of documents that were begun: a document counts when it is begun. So a source is
ahead of its part by less than the document that it began last, and behind by less than those of all the others
together; and what is read differs from that by what is open, which does not grow. (That is at the full vocabulary; at a
smaller one, a document counts its further tokens as they are read.)

The cursor is that of a mixture (see ``mixture``), whose samples and turns are tokens here; each source has lanes and
waiting (see ``lanes``), and the whole

    rows     of each lane the number of its source; as many as there are sources where it has none yet
    queue    the same of each place that waits, in the order in which lanes go on from them

A source that leaves a stage takes its places with it, which wait; its lanes begin documents of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.stream.lanes import Lanes, LaneStream
from pretrain.data.stream.mixture import Source, Sources, entries
from pretrain.data.stream.queue import Lane
from pretrain.data.stream.stream import Batch


class MixedLanes(Sources):
    """The training text of a stage with several corpora in lanes; see the module's docstring."""

    def __init__(
        self, sources: Sequence[Source], streams: Sequence[LaneStream], *, stage: str, cursor: Mapping[str, Any] | None
    ) -> None:
        """streams: that of each source, at its place already; each source's own `stream` is the queue of it. cursor:
        see Sources."""
        super().__init__(sources, stage=stage, cursor=cursor)
        self._queues = [stream.queue for stream in streams]
        for entry in self._others:
            if "lanes" in entry:
                entry["waiting"], entry["lanes"] = [*entry["waiting"], *entry["lanes"]], []
        rows = {stream.queue.identity: stream.lanes.lanes for stream in streams}
        waiting = {stream.queue.identity: stream.lanes.waiting for stream in streams}
        dealt = [rows[name].pop(0) if rows.get(name) else None for name in _named(cursor, "rows", "lanes")]
        places = [waiting[name].pop(0) for name in _named(cursor, "queue", "waiting") if waiting.get(name)]
        for queue in self._queues:
            queue.open = 0  # they count anew, below
            places += waiting[queue.identity]
            places += [(queue, lane.place) for lane in rows[queue.identity]]
        first = streams[0]
        eos = first.queue.corpus.tokenizer.eos
        self._lanes = Lanes(self._begin, dealt, places, seq_len=first.seq_len, eos=eos)

    @property
    def cursor(self) -> dict[str, Any]:
        cursor, lanes = super().cursor, self._lanes
        for entry, queue in zip(cursor["sources"], self._queues, strict=False):
            own = [lane for lane in lanes.lanes if lane.queue is queue]
            entry |= queue.said(own, [place for one, place in lanes.waiting if one is queue])
        number = {id(queue): n for n, queue in enumerate(self._queues)}
        none = len(cursor["sources"])
        return {
            **cursor,
            "rows": [number[id(lane.queue)] if lane else none for lane in lanes.rows],
            "queue": [number[id(queue)] for queue, _ in lanes.waiting],
        }

    def take(self, n: int) -> Batch:
        """The next sample of each of n lanes. Raises UserError where one needs text, and all sources have left."""
        batch = self._lanes.take(n)
        self._count()
        return batch

    def past(self, length: int) -> list[NDArray[np.int32]]:
        """See `Lanes.past`."""
        return self._lanes.past(length)

    def _begin(self) -> Lane:
        """A lane at the next document of the source that is due."""
        self._count()
        weights = self.weights()
        held = [source.turns + queue.open for source, queue in zip(self.sources, self._queues, strict=True)]
        total, whole = sum(own for own, weight in zip(held, weights, strict=True) if weight), sum(weights)
        due = max(
            (n for n, weight in enumerate(weights) if weight),
            key=lambda n: (weights[n] * total - whole * held[n], weights[n], -n),
        )
        lane = self._queues[due].begin()
        self._leave()
        return lane

    def _count(self) -> None:
        """What was read of each source since this was called last."""
        for source, queue in zip(self.sources, self._queues, strict=True):
            self._add(source, queue.read, 1)
            queue.read = 0


def _named(cursor: Mapping[str, Any] | None, key: str, alone: str) -> list[str]:
    """The corpora that the numbers under a key of a mixture's cursor stand for; of one corpus in lanes it, as often as
    it has what is `alone`."""
    known = [entry["corpus"] for entry in entries(cursor)]
    if not cursor or "sources" not in cursor:
        return known * len(cursor.get(alone, [])) if cursor else []
    return [known[number] if number < len(known) else "" for number in cursor.get(key, [])]

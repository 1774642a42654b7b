"""The text of a stage that has several corpora: the feeds of each, which take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config import Stage
from pretrain.data.documents import joined
from pretrain.data.packing import Packed
from pretrain.data.samples import Samples
from pretrain.data.stream.lanes import LaneStream
from pretrain.data.stream.mixed_lanes import MixedLanes
from pretrain.data.stream.mixture import Mixture, Source, entries
from pretrain.data.stream.windows import Rows
from pretrain.data.turns import turns, whole
from pretrain.errors import UserError
from pretrain.families.common.text import CausalFeed, Feed, HeldOut, Taken


class MixedFeed(Feed):
    """The feeds of a stage's corpora as one; what a family's samples are is theirs."""

    _text: Mixture | MixedLanes

    def __init__(self, stage: Stage, feeds: Sequence[Feed]) -> None:
        """feeds: one for each of data.corpora. Raises UserError for tokenizers that differ, and for a text that is
        there twice."""
        self.stage, self.feeds, self.tokenizer = stage, feeds, feeds[0].tokenizer
        self.names = names([source.corpus for source in stage.data.corpora])
        known: dict[str, int] = {}
        for number, feed in enumerate(feeds):
            where = f"data.corpora[{number}].corpus: {feed.source}"
            if feed.tokenizer.hash != self.tokenizer.hash:
                raise UserError(
                    f"{where} has another tokenizer than {feeds[0].source}; prepare it again with "
                    "tools/prepare_data.py --tokenizer and that one's"
                )
            if (first := known.setdefault(feed.corpus.hash, number)) != number:
                raise UserError(f"{where} is the text of data.corpora[{first}] again; name it once")

    @property
    def source(self) -> str:
        return ", ".join(feed.source for feed in self.feeds)

    def weights(self) -> list[float]:
        """The weight of each source, whichever of weight, tokens and epochs it has. Counts the text of those that have
        epochs, once. Raises UserError where tokens and epochs leave nothing for those that have a weight."""
        sources, train = self.stage.data.corpora, self.stage.train
        if all(source.weight is not None for source in sources):
            return [source.amount for source in sources]
        fixed = [
            source.amount * (1 if source.epochs is None else feed.training_tokens())
            for source, feed in zip(sources, self.feeds, strict=True)
            if source.weight is None
        ]
        weights = sum(source.weight or 0 for source in sources)
        budget = train.tokens or round(train.epochs * self.training_tokens())
        rest = budget - sum(fixed)
        if weights and rest <= 0:
            raise UserError(
                f"data.corpora: the tokens and epochs of its sources come to {sum(fixed):.0f} tokens of {budget}, "
                "which leaves nothing to share by weight; lower them, or give all sources tokens or epochs"
            )
        amounts = iter(fixed)
        if not weights:
            return [next(amounts) if source.weight is None else 0.0 for source in sources]
        return [next(amounts) * weights if source.weight is None else rest * source.weight for source in sources]

    def _opened(self, cursor: Mapping[str, Any] | None) -> Mixture | MixedLanes:
        """Each source goes on where it was in whichever stage, and a new one begins."""
        before = {entry["corpus"]: entry for entry in entries(cursor)}
        if cursor and cursor.get("tokenizer", self.tokenizer.hash) != self.tokenizer.hash:
            raise UserError(
                f"data.corpora: the stage before was trained with another tokenizer than {self.source} have"
            )
        sources, lanes = [], list[LaneStream]()
        given = zip(self.names, self.feeds, self.weights(), self.stage.data.corpora, strict=True)
        for name, feed, weight, share in given:
            feed.seek(None)
            if feed.cursor["corpus"] in before:
                feed.seek(before[feed.cursor["corpus"]])
            stream: Any = feed._text
            if isinstance(stream, LaneStream):
                lanes.append(stream)
                stream = stream.queue
            stream.epochs = share.leave_after
            sources.append(Source(name, stream, weight))
        stage = self.stage
        if lanes:
            return MixedLanes(sources, lanes, stage=stage.name, cursor=cursor)
        return Mixture(sources, stage=stage.name, seq_len=stage.train.seq_len, seed=stage.seed, cursor=cursor)

    def _take(self, n: int, rows: Rows, progress: float) -> Taken:
        if isinstance(self._text, MixedLanes):
            text = self.feeds[0]
            assert isinstance(text, CausalFeed)
            return replace(text.taken(self._text.take(n), rows), shares=self._text.shares)
        is_made = np.zeros(n, dtype=np.bool_)
        is_made[rows] = True
        parts: list[Taken] = []
        places: list[NDArray[np.int64]] = []
        sizes: list[int] = []
        done = 0
        while done < n:
            order = self._text.next(n - done)
            for number, feed in enumerate(self.feeds):
                own = done + np.flatnonzero(order == number)
                if len(own):
                    made = is_made[own]
                    parts.append(feed._take(len(own), made, progress))
                    places.append(own[made])
                    sizes.append(len(own))
            self._text.count(order)
            done += len(order)
        samples = _in_order([part.samples for part in parts], np.concatenate(places))
        seen = [part.seen * size for part, size in zip(parts, sizes, strict=True) if part.seen is not None]
        labels = [part.labels for part in parts if part.labels is not None]
        return Taken(
            samples,
            _bytes(parts),
            sum(seen) / n if seen else None,
            sum(labels) if labels else None,
            self._text.shares,
        )

    def measured(self, unit: int) -> tuple[HeldOut, ...]:
        weights = self.weights()
        given = zip(self.feeds, self.names, weights, strict=True)
        return tuple(
            replace(feed.held_out(unit), source=name, share=weight / sum(weights)) for feed, name, weight in given
        )

    def held_out(self, unit: int) -> HeldOut:
        """That of all sources, one after the other."""
        parts = self.measured(unit)
        return HeldOut(joined([part.samples for part in parts]), _bytes(parts))

    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        return _by_turns(self._turns(n), [partial(feed.probe, vocab=vocab, seq_len=seq_len) for feed in self.feeds])

    def batch(self, n: int) -> Samples:
        return _by_turns(self._turns(n), [feed.batch for feed in self.feeds])

    def packings(self) -> dict[str, Packed]:
        parts, weights = [feed.packings() for feed in self.feeds], self.weights()
        return {
            kind: Packed(*np.average([astuple(part[kind]) for part in parts], axis=0, weights=weights).tolist())
            for kind in parts[0]
        }

    def _turns(self, n: int) -> NDArray[np.int64]:
        weights = whole(self.weights())
        return turns(weights, [0] * len(weights), n, self.stage.seed)

    def training_tokens(self) -> int:
        return sum(feed.training_tokens() for feed in self.feeds)


def _by_turns(order: NDArray[np.int64], make: Sequence[Callable[[int], Samples]]) -> Samples:
    """Samples of the sources in this order; make: of each source, what makes its first so many."""
    places = [np.flatnonzero(order == number) for number in range(len(make))]
    parts = [one(len(own)) for one, own in zip(make, places, strict=True) if len(own)]
    return _in_order(parts, np.concatenate(places))


def _in_order(parts: Sequence[Samples], places: NDArray[np.int64]) -> Samples:
    """Samples that were made source by source, sorted by their places in the batch."""
    order = torch.from_numpy(np.argsort(places))
    return {name: rows.index_select(0, order) for name, rows in joined(parts).items()}


def _bytes(parts: Sequence[Taken | HeldOut]) -> int | None:
    known = [part.bytes for part in parts if part.bytes is not None]
    return sum(known) if known else None


def names(folders: Sequence[str]) -> list[str]:
    """What to call each corpus: the last parts of its folder's path, as many as tell them all apart."""
    parts = [PurePath(folder).parts for folder in folders]
    for n in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names

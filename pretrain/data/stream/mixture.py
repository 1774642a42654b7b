"""Several streams that take turns, each from a cursor of its own.

The cursor of a mixture says, for JSON:

    stage       the stage that it is of
    tokenizer   hash of the tokenizer that all sources share
    sources     the stage's sources in order, then those of earlier stages, which a later stage may take up again.
                Each is the cursor of its stream (see ``windows``) and
                    weight     its share of this stage, to the sum of all
                    turns      how often it has had its turn by these weights (see ``pretrain.data.turns``)
                    samples    its samples in this stage
                    tokens     its tokens since it first was part of a mixture, over all stages

Where weights change, and where a source leaves, turns are counted anew. For lanes see ``mixed_lanes``.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.data.turns import turns, whole
from pretrain.errors import UserError

log = logging.getLogger(__name__)


class AnyStream(Protocol):
    """What a source reads: see ``windows`` and ``queue``."""

    epochs: int | None

    @property
    def cursor(self) -> dict[str, Any]:
        """Where it goes on, for JSON."""

    def ready(self) -> int:
        """How much can be taken before its text may be over; 0 where it is."""


@dataclass
class Source:
    """One stream of a mixture, where it goes on, and what it has given; see the module's docstring."""

    name: str
    stream: AnyStream
    weight: float
    turns: int = 0
    samples: int = 0
    tokens: int = 0
    left: bool = False

    @property
    def cursor(self) -> dict[str, Any]:
        """Its part of a mixture's cursor."""
        given = {key: getattr(self, key) for key in ("weight", "turns", "samples", "tokens")}
        return {**self.stream.cursor, **given}


class Sources:
    """The sources of a stage, and what each has given."""

    def __init__(self, sources: Sequence[Source], *, stage: str, cursor: Mapping[str, Any] | None) -> None:
        """sources: each with its stream at its place already. cursor: of this stage, or of its parent.

        Raises UserError where it is of this stage, and of other corpora.
        """
        self.sources, self._stage = sources, stage
        before = entries(cursor)
        own = [source.stream.cursor for source in sources]
        self._others = [
            {**entry, "weight": 0.0, "turns": 0, "samples": 0}
            for entry in before
            if entry["corpus"] not in [each["corpus"] for each in own]
        ]
        self._tokenizer = own[0]["tokenizer"]
        by_corpus = {entry["corpus"]: entry for entry in before}
        for source, each in zip(sources, own, strict=True):
            source.tokens = by_corpus.get(each["corpus"], {}).get("tokens", 0)
        if cursor and cursor.get("stage") == stage:
            self._resume(before[: len(sources)], own)
        for source in sources:
            source.left = source.stream.ready() == 0

    def _resume(self, before: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
        if [entry["corpus"] for entry in before] != [entry["corpus"] for entry in own]:
            raise UserError(
                f"the data cursor is not of {self._names}: one of these corpora, the seed or the validation fraction "
                "has changed since the checkpoint was written; put them back"
            )
        same = [entry["weight"] for entry in before] == [source.weight for source in self.sources]
        for source, entry in zip(self.sources, before, strict=True):
            source.samples = entry["samples"]
            source.turns = entry["turns"] if same else 0

    @property
    def cursor(self) -> dict[str, Any]:
        """Where the next sample comes from, and all that was given before."""
        sources = [*(source.cursor for source in self.sources), *self._others]
        return {"stage": self._stage, "tokenizer": self._tokenizer, "sources": sources}

    @property
    def _names(self) -> str:
        return ", ".join(source.name for source in self.sources)

    @property
    def shares(self) -> dict[str, float]:
        """Of the stage's samples so far, the share of each source, by name."""
        total = sum(source.samples for source in self.sources)
        return {source.name: source.samples / total for source in self.sources} if total else {}

    def weights(self) -> list[int]:
        """Of the sources in whole numbers, 0 of those that have left. Raises UserError where all of them have."""
        weights = whole([0.0 if source.left else source.weight for source in self.sources])
        if not any(weights):
            raise UserError(
                f"all of {self._names} have left (leave_after in data.corpora), and the stage goes on: give it fewer "
                "tokens, or let one of them begin its next epoch"
            )
        return weights

    def _add(self, source: Source, number: int, tokens: int) -> None:
        """It has given so many samples, of so many tokens each."""
        source.turns += number
        source.samples += number
        source.tokens += number * tokens

    def _leave(self) -> None:
        """Sources whose text is over leave."""
        gone = [source for source in self.sources if not source.left and source.stream.ready() == 0]
        for source in gone:
            source.left = True
            log.warning("%s was read %d times and leaves: the others share its part", source.name, source.stream.epochs)
        if gone:
            for source in self.sources:
                source.turns = 0


class Mixture(Sources):
    """Whose samples come next. The caller takes them from the streams, and says so with ``count``."""

    def __init__(
        self, sources: Sequence[Source], *, stage: str, seq_len: int, seed: int, cursor: Mapping[str, Any] | None
    ) -> None:
        super().__init__(sources, stage=stage, cursor=cursor)
        self._seq_len, self._seed = seq_len, seed

    def next(self, n: int) -> NDArray[np.int64]:
        """The sources of the next samples: of n, or of fewer where then one may leave (int64).

        Raises UserError where all of them have left.
        """
        weights = self.weights()
        order = turns(weights, [source.turns for source in self.sources], n, self._seed)
        end = n
        for number, source in enumerate(self.sources):
            if weights[number] and source.stream.epochs is not None:
                places, ready = np.flatnonzero(order == number), source.stream.ready()
                if len(places) >= ready:
                    end = min(end, int(places[ready - 1]) + 1)
        return order[:end]

    def count(self, order: NDArray[np.int64]) -> None:
        """These samples were taken from the streams."""
        for source, number in zip(self.sources, np.bincount(order, minlength=len(self.sources)).tolist(), strict=True):
            self._add(source, number, self._seq_len)
        self._leave()


def entries(cursor: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The cursor of each source; of a stage with one corpus, its only one."""
    return list(cursor.get("sources", [cursor])) if cursor else []

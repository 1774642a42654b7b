"""Training text whose labels are a unit ahead, and some of whose samples are padded at their left, as prompts are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus
from pretrain.data.draws import below, keyed, uniform
from pretrain.data.stream.stream import Batch, Position, TextStream, Window, read_window

PADDED = 1 / 8
"""Share of the samples that are padded."""


@dataclass(frozen=True)
class PaddedBatch(Batch):
    """``tokens``: int64 [n, seq_len + ahead]; ``padding``: int64 [n], how many of each come before its text."""

    padding: NDArray[np.int64]


class UnitStream(TextStream[Window, PaddedBatch]):
    """``ahead``: how many tokens the longest unit has. A sample is padded by 1 to ahead - 1 places, so that its text
    begins inside a unit; which are, and by how much, follows from the seed and the sample's place alone. It has as many
    labels as any other: its text is that of the sample that it would be, from its first token on, and the labels of its
    first unit are then of that unit."""

    def __init__(self, corpus: Corpus, *, ahead: int, **how: Any) -> None:
        """how: as of TextStream."""
        self.ahead = ahead
        super().__init__(corpus, **how)

    def read(self, start: Position, size: int) -> Window:
        """Reads the ``size`` sequences from a place on, and the tokens behind them that are labels."""
        window = read_window(self.corpus, self.split, self.vocab, start, size, self.seq_len)
        behind = read_window(self.corpus, self.split, self.vocab, window.end, 1, self.ahead - 1)
        tokens = np.concatenate((window.tokens[:-1], behind.tokens))
        before = np.concatenate((window.bytes_before[:-1], window.bytes_before[-2] + behind.bytes_before[1:]))
        return Window(window.sequences, window.end, tokens, before)

    def samples(self, window: Window, which: NDArray[np.int64]) -> PaddedBatch:
        """Cuts the sequences with these numbers out of a window, and pads some of them."""
        key = keyed(self._seed, "padding", *asdict(self._start).values(), which)
        much = 1 + below(self.ahead - 1, uniform(key, "places"))
        padding = np.where(uniform(key) < PADDED, much, 0)
        first = which * self.seq_len - padding
        places = first[:, None] + np.arange(self.seq_len + self.ahead)
        tokens = window.tokens[np.maximum(places, 0)].astype(np.int64)
        label = first + self.ahead
        size = window.bytes_before[label + self.seq_len] - window.bytes_before[label]
        return PaddedBatch(tokens, size, padding)

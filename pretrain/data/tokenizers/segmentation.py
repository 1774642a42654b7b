"""From the ids of a full vocabulary to those of its first pieces, for vocabularies whose pieces lie in the order in
which they grow."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pretrain.data.ragged import ragged

CHUNK = 1 << 16  # ids re-segmented at a time: the intermediates stay in the cache


@dataclass(frozen=True)
class Segmentation:
    """Ids of the full vocabulary to ids of the first ``vocab`` pieces.

    Piece t becomes ``flat[offsets[t] : offsets[t] + lengths[t]]``: itself if t < vocab, else what spells it. The result
    equals the text encoded by a stage's tokenizer.
    """

    vocab: int
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    flat: NDArray[np.int32]

    @classmethod
    def of(cls, vocab: int, spellings: list[list[int]]) -> Self:
        """The table for the first ``vocab`` pieces; spellings: the ids that spell each of the other ones."""
        table = [[t] for t in range(vocab)] + spellings
        lengths = np.array([len(row) for row in table], dtype=np.int32)
        offsets = np.cumsum(lengths, dtype=np.int64) - lengths
        return cls(vocab, lengths, offsets, np.array([t for row in table for t in row], dtype=np.int32))

    def apply(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        """Re-segments full-vocabulary ids (integers [n]) to the stage's (int32 [m], m >= n)."""
        if self.vocab == len(self.lengths):
            return ids.astype(np.int32, copy=False)
        chunks = [np.empty(0, dtype=np.int32)]
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            chunks.append(self.flat[ragged(self.offsets[chunk], self.lengths[chunk])])
        return np.concatenate(chunks)

    def piece(self, t: int) -> list[int]:
        """The ids that spell piece t."""
        return self.flat[self.offsets[t] : self.offsets[t] + self.lengths[t]].tolist()


@dataclass(frozen=True)
class Base:
    """A tokenizer to which a user has added pieces: its hash, and the rows of a model of it, behind which they are."""

    hash: str
    rows: int


class GrowingVocabulary(ABC):
    """A tokenizer whose first V pieces are the vocabulary of a stage. ``permutation[i]``: the stock id of piece i.
    ``base``: what a user has added pieces to; None: nothing was added."""

    permutation: NDArray[np.int32]
    base: Base | None = None

    def __init__(self) -> None:
        self._segmentations: dict[int, Segmentation] = {}

    @abstractmethod
    def legal(self, vocab: int) -> None:
        """Raise UserError unless the first ``vocab`` pieces can be a stage's."""

    @abstractmethod
    def spellings(self, vocab: int) -> list[list[int]]:
        """For each piece from ``vocab`` on, the ids below ``vocab`` that spell it."""

    def segmentation(self, vocab: int) -> Segmentation:
        """The table that spells full-vocabulary ids with the first ``vocab`` pieces."""
        self.legal(vocab)
        if vocab not in self._segmentations:
            self._segmentations[vocab] = Segmentation.of(vocab, self.spellings(vocab))
        return self._segmentations[vocab]

    def new_pieces(self, old: int, new: int) -> list[list[int]]:
        """For each row of the vocabulary from ``old`` to ``new``, the rows below ``old`` that its text was made of."""
        self.legal(new)
        table = self.segmentation(old)
        return [table.piece(t) for t in range(old, new)]

    def stock_order(self, vocab: int) -> NDArray[np.int64]:
        """Stage row -> row of the exported model: the kept pieces in the stock order (int64 [vocab])."""
        self.legal(vocab)
        row = np.empty(vocab, dtype=np.int64)
        row[np.argsort(self.permutation[:vocab])] = np.arange(vocab)
        return row

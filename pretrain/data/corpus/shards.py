"""A corpus of several token files, the shards, that read like one: documents are numbered through all of them.

The corpus's description lists its shards in order, each with what tells it from a shard of another corpus.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from typing_extensions import TypedDict

from pretrain.data.corpus.indexed import AGAIN, IndexedTokens
from pretrain.data.ragged import ragged
from pretrain.errors import UserError
from pretrain.runtime.documents import Count, Text

FOLDER = "shards"  # shards/NAME.bin, shards/NAME.idx
EDGE = 4096  # bytes at each end of a file that are hashed when a corpus is opened


class Shard(TypedDict):
    """One token file, as the description of its corpus has it."""

    name: Text
    documents: Count
    tokens: Count
    xxh3_128: Text  # of the tokens
    edges: Text  # of both ends of tokens and index, by `edges_of`


def edges_of(prefix: Path) -> str:
    """The xxh3_64 of the first and the last `EDGE` bytes of PREFIX.bin and PREFIX.idx: quick, whatever their size."""
    state = xxhash.xxh3_64()
    for suffix in (".bin", ".idx"):
        with open(prefix.with_suffix(suffix), "rb") as file:
            state.update(file.read(EDGE))
            file.seek(max(0, file.seek(0, 2) - EDGE))
            state.update(file.read(EDGE))
    return state.hexdigest()


class ShardedTokens:
    """The shards of a folder, with the methods of `IndexedTokens`: places count on from one shard to the next."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        """Raises UserError, naming the file, if a shard is missing, cut short or not the one that is described."""
        self.bin_path = folder / FOLDER / "*.bin"
        self._files = [_opened(folder / FOLDER / shard["name"], shard) for shard in shards]
        self._documents, self._sequences, self._tokens = (
            np.cumsum([0, *counts], dtype=np.int64)
            for counts in zip(*((f.documents, len(f.lengths), f.tokens) for f in self._files), strict=True)
        )

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self._documents[-1])

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(self._tokens[-1])

    def documents_of(self, sequences: int) -> int:
        """How many documents have at least so many sequences."""
        return sum(file.documents_of(sequences) for file in self._files)

    def first_sequences(self, documents: NDArray[np.integer]) -> NDArray[np.int64]:
        """The first sequence of each document; that after the last document is the end."""
        return self._each(
            documents, self._documents, lambda nth, at: self._sequences[nth] + self._files[nth].bounds[at]
        )

    def sequence_lengths(self, sequences: NDArray[np.integer]) -> NDArray[np.int64]:
        """The lengths of sequences in tokens."""
        return self._each(sequences, self._sequences, lambda nth, at: self._files[nth].sequence_lengths(at))

    def starts(self, sequences: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where sequences start, in tokens; the sequence after the last starts at the end."""
        return self._each(sequences, self._sequences, lambda nth, at: self._tokens[nth] + self._files[nth].starts(at))

    def document_ranges(self, documents: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where documents start, and their lengths, in tokens. Raises UserError for damaged bounds."""
        starts, lengths = (np.empty(len(documents), dtype=np.int64) for _ in range(2))
        for nth, which in _parts(np.asarray(documents), self._documents):
            start, lengths[which] = self._files[nth].document_ranges(documents[which] - self._documents[nth])
            starts[which] = self._tokens[nth] + start
        return starts, lengths

    def read(self, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int32]:
        """The tokens of ranges, none of which crosses from one shard to another, one after the other (int32).

        Raises UserError for ranges outside of a shard.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
        for nth, which in _parts(np.asarray(starts), self._tokens):
            inside = self._files[nth].read(starts[which] - self._tokens[nth], lengths[which])
            tokens[ragged((ends - lengths)[which], lengths[which])] = inside
        return tokens

    def _each(
        self,
        places: NDArray[np.integer],
        edges: NDArray[np.int64],
        of: Callable[[int, NDArray[np.int64]], NDArray[np.integer]],
    ) -> NDArray[np.int64]:
        """``of`` the number of a shard and places inside it, for each place."""
        values = np.empty(len(places), dtype=np.int64)
        for nth, which in _parts(np.asarray(places), edges):
            values[which] = of(nth, places[which] - edges[nth])
        return values


def _parts(places: NDArray[np.integer], edges: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The number of each shard that has some of the places, and which of them; the end belongs to the last shard."""
    shard = np.clip(np.searchsorted(edges, places, side="right") - 1, 0, len(edges) - 2)
    order = np.argsort(shard, kind="stable")
    cuts = np.flatnonzero(np.diff(shard[order])) + 1
    for which in np.split(order, cuts):
        if len(which):
            yield int(shard[which[0]]), which


def _opened(prefix: Path, shard: Shard) -> IndexedTokens:
    file = IndexedTokens(prefix)
    if (file.documents, file.tokens) != (shard["documents"], shard["tokens"]) or edges_of(prefix) != shard["edges"]:
        raise UserError(
            f"{prefix}.bin is not the shard that the corpus's description has ({shard['documents']} documents of "
            f"{shard['tokens']} tokens, and what its files begin and end with): it is of another corpus; {AGAIN}"
        )
    return file

"""Megatron-core's indexed token files: PREFIX.bin holds the tokens, PREFIX.idx where the documents are.

Read here by memory map, since importing megatron.core for it takes seconds. The format (megatron/core/datasets/
indexed_dataset.py): magic, version, dtype code, number of sequences, number of document bounds; then the length (int32)
and the byte offset (int64) of each sequence, and the bounds of documents in sequences (int64).
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.remote import Blocks
from pretrain.data.ragged import ragged
from pretrain.errors import UserError

HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, np.dtype] = {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}
PART = 1 << 16  # documents that are looked at together
AGAIN = "make the corpus again with tools/prepare_data.py"
CODES: dict[np.dtype, int] = {dtype: code for code, dtype in DTYPES.items()}


def token_dtype(vocab: int) -> np.dtype:
    """The smallest type of the format that holds ids below ``vocab``."""
    return np.dtype(np.uint16) if vocab <= 1 << 16 else np.dtype(np.int32)


def write_index(path: Path, lengths: NDArray[np.integer], bounds: NDArray[np.integer], dtype: np.dtype) -> None:
    """Write an .idx file: the lengths of all sequences in tokens, and the bounds of documents in sequences (from 0)."""
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    with open(path, "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths), len(bounds)))
        file.write(np.asarray(lengths, dtype="<i4").tobytes())
        file.write((ends - np.asarray(lengths, dtype=np.int64) * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.asarray(bounds, dtype="<i8").tobytes())


class IndexedTokens:
    """Documents of tokens, memory-mapped.

    ``lengths`` are the lengths of the sequences (sentences, or whole documents) in tokens, ``starts`` their first
    tokens, ``bounds`` the documents in sequences: document d is sequences ``bounds[d]`` to ``bounds[d + 1]``.
    """

    def __init__(self, prefix: Path) -> None:
        """Raises UserError, naming the file, if one is missing, cut short or not of the format."""
        self.bin_path, idx = prefix.with_suffix(".bin"), prefix.with_suffix(".idx")
        for path in (self.bin_path, idx):
            if not path.is_file():
                raise UserError(f"{path} does not exist: make it with tools/prepare_data.py")
        with open(idx, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise UserError(f"{idx} is cut short (its header): {AGAIN}")
        magic, version, code, sequences, bounds = HEADER.unpack(header)
        if magic != MAGIC or version != VERSION or code not in DTYPES:
            raise UserError(f"{idx} is not a Megatron index of int32 or uint16 tokens")
        if not bounds:
            raise UserError(f"{idx} has no bounds of documents: {AGAIN}")
        self.dtype = DTYPES[code]
        expected = HEADER.size + 12 * sequences + 8 * bounds
        if idx.stat().st_size != expected:
            raise UserError(f"{idx} has {idx.stat().st_size} bytes instead of {expected}: {AGAIN}")
        raw = np.memmap(idx, mode="r", dtype=np.uint8)
        at = HEADER.size
        self.lengths: NDArray[np.int32] = raw[at : at + 4 * sequences].view("<i4")
        at += 4 * sequences
        self._offsets: NDArray[np.int64] = raw[at : at + 8 * sequences].view("<i8")
        self.bounds: NDArray[np.int64] = raw[at + 8 * sequences :].view("<i8")
        self.tokens = 0 if not sequences else int(self._offsets[-1]) // self.dtype.itemsize + int(self.lengths[-1])
        if self.bin_path.stat().st_size != self.tokens * self.dtype.itemsize:
            raise UserError(
                f"{self.bin_path} has {self.bin_path.stat().st_size} bytes, but {idx.name} describes"
                f" {self.tokens * self.dtype.itemsize}: one is cut short; {AGAIN}"
            )
        self._tokens: NDArray[np.integer] = np.empty(0, self.dtype)
        if self.tokens:  # an empty file cannot be mapped
            self._tokens = np.memmap(self.bin_path, mode="r", dtype=self.dtype)
        self._blocks = Blocks.beside(self.bin_path)

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.bounds) - 1

    def documents_of(self, sequences: int) -> int:
        """How many documents have at least so many sequences."""
        parts = (self.bounds[at : at + PART + 1] for at in range(0, self.documents, PART))
        return sum(int((np.diff(part) >= sequences).sum()) for part in parts)

    def first_sequences(self, documents: NDArray[np.integer]) -> NDArray[np.int64]:
        """The first sequence of each document; that after the last document is the end."""
        return self.bounds[documents].astype(np.int64)

    def sequence_lengths(self, sequences: NDArray[np.integer]) -> NDArray[np.int64]:
        """The lengths of sequences in tokens."""
        return self.lengths[sequences].astype(np.int64)

    def starts(self, sequences: NDArray[np.integer]) -> NDArray[np.int64]:
        """Where sequences start in the file, in tokens; the sequence after the last starts at its end."""
        if not len(self._offsets):
            return np.zeros(len(sequences), dtype=np.int64)
        inside = np.minimum(sequences, len(self._offsets) - 1)
        start = self._offsets[inside] // self.dtype.itemsize
        return np.where(sequences == inside, start, self.tokens)

    def document_ranges(self, documents: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where documents start in the file, and their lengths, in tokens. Raises UserError for damaged bounds."""
        first, last = self.bounds[documents], self.bounds[documents + 1]
        if len(first) and not (first.min() >= 0 and (first <= last).all() and last.max() <= len(self.lengths)):
            raise UserError(
                f"{self.bin_path.with_suffix('.idx')} is damaged: it has documents outside of the file: {AGAIN}"
            )
        start = self.starts(first)
        return start, self.starts(last) - start

    def read(self, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int32]:
        """The tokens of ranges of the file, one after the other (int32). Raises UserError on ranges outside of it."""
        if len(starts) and (min(starts.min(), lengths.min()) < 0 or (starts + lengths).max() > self.tokens):
            raise UserError(
                f"{self.bin_path.with_suffix('.idx')} is damaged: it has documents outside of the file: {AGAIN}"
            )
        if self._blocks:
            self._blocks.want(starts * self.dtype.itemsize, (starts + lengths) * self.dtype.itemsize)
        return self._tokens[ragged(starts, lengths)].astype(np.int32)

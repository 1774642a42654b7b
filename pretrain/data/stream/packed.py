"""The training text in whole documents: as many in a sample as fit, and none cut that would fit (see ``packing``).

A window is as many of the next documents as make about ``window`` samples, packed together; a window ends with an epoch
at the latest. So it is a function of the place where it starts, as every window is (see ``windows``), and its place is
the beginning of a document; only one that has more than a window's text goes on in the middle.

The tokenizer's eos is a document's first input, and its own eos its last label, so that every token is a label once. A
piece of a longer document begins with the token before it. Where a stage goes on in the middle of a document that its
parent has cut, the token that holds the place is an input and no label, as in the parent's text.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.corpus.corpus import Corpus, Split
from pretrain.data.packing import best_fit, pieces
from pretrain.data.ragged import ragged
from pretrain.data.stream.stream import Position, TextStream, full_tokens, next_documents


@dataclass(frozen=True)
class PackedBatch:
    """n samples. ``inputs``, ``labels``: int64 [n, seq_len]; ``mask``: bool, False where there is padding; ``begins``:
    bool, True where a piece of a document or padding begins; ``bytes``: int64 [n], the bytes of text that the labels of
    each stand for."""

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    mask: NDArray[np.bool_]
    begins: NDArray[np.bool_]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class PackedWindow:
    """Samples of pieces, which lie in the order of the samples. ``tokens``: int32, documents with the first input of
    each before it; ``bytes_before``: int64, one longer, the bytes of text before each token and before the end;
    ``start``, ``size``: of each piece, its first input in these and how many it has; ``first``: of each sample, and of
    the end, its first piece."""

    end: Position
    tokens: NDArray[np.int32]
    bytes_before: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1


@dataclass(frozen=True)
class Documents:
    """Text from a place on. ``tokens``, ``bytes_before``: see PackedWindow; ``inputs``: how many of these are inputs of
    each document (int64); ``end``: the place behind it."""

    tokens: NDArray[np.int32]
    bytes_before: NDArray[np.int64]
    inputs: NDArray[np.int64]
    end: Position


class PackedStream(TextStream[PackedWindow, PackedBatch]):
    """The training text of a stage with ``data.packing: best_fit``."""

    kind: ClassVar[dict[str, Any]] = {"packing": "best_fit"}

    def read(self, start: Position, size: int) -> PackedWindow:
        """Reads about ``size`` samples of documents from a place on, and packs them."""
        text = read_documents(self.corpus, self.split, self.vocab, start, size * self.seq_len)
        document, parts = pieces(text.inputs, self.seq_len)
        # A document's tokens are one more than its inputs; of its pieces all but the last are whole samples.
        before = np.cumsum(text.inputs + 1) - text.inputs - 1
        number = np.arange(len(document)) - np.searchsorted(document, document)
        sample = best_fit(parts, self.seq_len)
        order = np.argsort(sample, kind="stable")
        first = np.searchsorted(sample[order], np.arange(sample.max(initial=-1) + 2))
        at = (before[document] + number * self.seq_len)[order]
        return PackedWindow(text.end, text.tokens, text.bytes_before, at, parts[order], first)

    def samples(self, window: PackedWindow, which: NDArray[np.int64]) -> PackedBatch:
        """Puts the samples of a window that have these numbers together."""
        n, length = len(which), self.seq_len
        counts = window.first[which + 1] - window.first[which]
        chosen, row = ragged(window.first[which], counts), np.repeat(np.arange(n), counts)
        start, size = window.start[chosen], window.size[chosen]
        filled = np.bincount(row, weights=size, minlength=n).astype(np.int64)
        column = np.cumsum(size) - size - np.repeat(np.cumsum(filled) - filled, counts)
        source, to = ragged(start, size), ragged(row * length + column, size)
        inputs = np.full((n, length), self.corpus.tokenizer.eos, dtype=np.int64)
        labels, mask, begins = inputs.copy(), np.zeros((n, length), np.bool_), np.zeros((n, length), np.bool_)
        inputs.flat[to], labels.flat[to], mask.flat[to] = window.tokens[source], window.tokens[source + 1], True
        begins[row, column] = True
        padded = np.flatnonzero(filled < length)
        begins[padded, filled[padded]] = True
        text = window.bytes_before[start + size + 1] - window.bytes_before[start + 1]
        return PackedBatch(inputs, labels, mask, begins, np.bincount(row, text, n).astype(np.int64))


def read_documents(corpus: Corpus, split: Split, vocab: int, at: Position, most: int) -> Documents:
    """Whole documents from a place on that have at most so many inputs, up to the end of the epoch; or, of a single one
    that has more, as many."""
    most = max(most, 2)  # after less than two tokens the place would not move
    tokenizer, segmentation = corpus.tokenizer, corpus.tokenizer.segmentation(vocab)
    ids, counts = full_tokens(corpus, split, at, most + 1)
    stage_tokens, lengths = segmentation.apply(ids), segmentation.lengths[ids].astype(np.int64)
    id_starts, ends = np.cumsum(counts) - counts, np.cumsum(lengths)
    raw = tokenizer.piece_bytes[stage_tokens].astype(np.int64)
    text = raw.copy()
    text[(ends - lengths)[id_starts[1 if at.token else 0 :]]] -= tokenizer.prefix_bytes
    in_middle = bool(at.token or at.byte)
    skip = int(np.searchsorted(np.cumsum(raw[: lengths[0]]), at.byte, side="right")) if at.byte else 0
    sizes = np.add.reduceat(lengths, id_starts)
    inputs = sizes.copy()
    inputs[0] -= skip + in_middle  # the token that holds the place is no label
    whole = int(np.searchsorted(np.cumsum(inputs), most, side="right"))
    if len(ids) > most:  # what was read last may not be a whole document
        whole = min(whole, len(counts) - 1)
    if whole:
        end, inputs = next_documents(split, at, whole), inputs[:whole]
    else:
        last = skip + in_middle + most - 1  # the last label, of the document's tokens
        nth = int(np.searchsorted(ends, last, side="right"))
        end = Position(at.epoch, at.document, at.token + nth, int(raw[ends[nth] - lengths[nth] : last].sum()))
        inputs = np.array([most])
    parts, part_sizes = [], []
    begin = np.cumsum(sizes) - sizes
    for document, count in enumerate(inputs.tolist()):
        first = int(begin[document])
        if document == 0 and in_middle:
            parts.append(stage_tokens[first + skip : first + skip + 1 + count])
            part_sizes.append(text[first + skip : first + skip + 1 + count])
        else:
            parts += [np.array([tokenizer.eos], dtype=np.int32), stage_tokens[first : first + count]]
            part_sizes += [np.zeros(1, dtype=np.int64), text[first : first + count]]
    return Documents(np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(part_sizes))]), inputs, end)

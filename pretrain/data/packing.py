"""Whole documents in samples of one length: best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language
modeling", section 3), beside samples that are cut out of documents laid end to end."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def pieces(sizes: NDArray[np.integer], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(documents, sizes) of the pieces of documents of these sizes: each whole, or, if it is longer than a sample, as
    many whole samples as there are in it and the rest (int64, in the order of the documents)."""
    counts = -(-sizes.astype(np.int64) // length)
    documents = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    return documents, np.minimum(sizes[documents] - number * length, length)


def best_fit(sizes: NDArray[np.integer], length: int) -> NDArray[np.int64]:
    """The sample of each piece (int64), of samples numbered as they are begun.

    The largest pieces come first, of equal ones in their order; each goes where the least room is left of what is
    enough, or into a sample of its own. sizes: 1 to `length`.
    """
    samples = np.empty(len(sizes), dtype=np.int64)
    free: list[list[int]] = [[] for _ in range(length + 1)]  # the samples with so much room left
    rooms: list[int] = []  # which of these are not empty, in order
    begun = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        if (at := bisect_left(rooms, size)) < len(rooms):
            room = rooms[at]
            sample = free[room].pop()
            if not free[room]:
                del rooms[at]
        else:
            room, sample, begun = length, begun, begun + 1
        samples[piece] = sample
        if left := room - size:
            if not free[left]:
                insort(rooms, left)
            free[left].append(sample)
    return samples


@dataclass(frozen=True)
class Packed:
    """What becomes of documents in samples. truncations: cuts of documents, a million tokens. padding: share of the
    places that have no token. seen: how many tokens a token's document has in its sample, in the mean over places."""

    truncations: float
    padding: float
    seen: float


def of_concatenation(sizes: NDArray[np.integer], length: int) -> Packed:
    """Of documents of these sizes laid end to end and cut into samples; what is left at the end is the next text's."""
    ends = np.cumsum(sizes, dtype=np.int64)
    cuts = np.arange(length, ends[-1] + 1, length)
    bounds = np.union1d(ends, cuts)
    inside = np.diff(bounds, prepend=0).astype(np.float64)
    cut = len(np.setdiff1d(cuts, ends))
    return Packed(1e6 * cut / int(ends[-1]), 0.0, float((inside**2).sum() / ends[-1]))


def of_best_fit(sizes: NDArray[np.integer], length: int) -> Packed:
    """Of documents of these sizes in samples as `best_fit` packs them."""
    documents, parts = pieces(sizes, length)
    samples = best_fit(parts, length)
    places, tokens = (int(samples.max()) + 1) * length, int(parts.sum())
    padding = length - np.bincount(samples, weights=parts)
    squares = (parts.astype(np.float64) ** 2).sum() + (padding**2).sum()
    return Packed(1e6 * (len(documents) - len(sizes)) / tokens, 1 - tokens / places, float(squares / places))


PACKINGS = {"concatenate": of_concatenation, "best_fit": of_best_fit}
"""What becomes of documents, by `data.packing`."""

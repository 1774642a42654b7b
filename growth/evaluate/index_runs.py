"""An index map as runs of new indices: some that slices can copy, and gathers where those would be too short."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from growth.maps import Bools, Floats, Ints

Index = slice | Ints
_FEW, _LARGE = 16, 1 << 14  # runs that are copied one by one: so few of them, or of so many elements
_NARROW = 16  # but none that is narrower


@dataclass(frozen=True)
class Term:
    """Old indices (or rows of `mixes`) and what they are multiplied by. A slice of one index stands for all."""

    source: Index
    factor: float | Floats
    mixed: bool


@dataclass(frozen=True)
class IndexRun:
    """New indices that are made alike: the sum of `terms`, or without any either zero or fresh."""

    place: Index
    size: int
    terms: tuple[Term, ...]
    zero: bool


def index_runs(source: Ints, factor: Floats, mix: Ints, zero: Bools, across: int) -> list[IndexRun]:
    """The runs of a map: source and factor [n, K], mix and zero [n]; an index has `across` elements.

    Each index is in one run, and each is written once.
    """
    count = (source >= 0).sum(axis=1)
    kind = np.where(mix >= 0, -3, np.where(count > 0, count, np.where(zero, -2, -1)))
    found = []
    for a, b, long in _stretches(source, factor, mix, kind, across):
        for k in [kind[a]] if long else np.unique(kind[a:b]):
            index = np.arange(a, b) if long else a + np.flatnonzero(kind[a:b] == k)
            found.append(IndexRun(as_index(index), len(index), _terms(source, factor, mix, int(k), index), k == -2))
    return found


def as_index(index: Ints) -> Index:
    """Ascending or equal indices in equal steps as a slice, others as they are."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step < 0 or (len(index) > 2 and (index[1:] - index[:-1] != step).any()):
        return index
    return slice(int(index[0]), int(index[-1]) + 1, step or None)


def _terms(source: Ints, factor: Floats, mix: Ints, kind: int, index: Ints) -> tuple[Term, ...]:
    if kind == -3:
        return (Term(as_index(mix[index]), _as_factor(factor[index, 0]), True),)
    return tuple(Term(as_index(source[index, k]), _as_factor(factor[index, k]), False) for k in range(kind))


def _as_factor(factor: Floats) -> float | Floats:
    return float(factor[0]) if (factor == factor[0]).all() else factor


def _stretches(source: Ints, factor: Floats, mix: Ints, kind: Ints, across: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, long): runs that are long enough, and between them stretches of those that are not."""
    old = source >= 0
    following = ~old[1:] | ((source[1:] == source[:-1] + 1) & (factor[1:] == factor[:-1]))
    same = (kind[1:] == kind[:-1]) & following.all(axis=1) & ((kind[1:] != -3) | (mix[1:] == mix[:-1]))
    edges = [0, *(np.flatnonzero(~same) + 1).tolist(), len(kind)]
    few = len(edges) <= _FEW
    start = 0
    for a, b in itertools.pairwise(edges):
        if few or (b - a >= _NARROW and (b - a) * across >= _LARGE):
            if start < a:
                yield start, a, False
            yield a, b, True
            start = b
    if start < len(kind):
        yield start, len(kind), False

"""The map of one dimension as runs: new indices that are made alike, so that one slice or one gather serves them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from growth.maps import Floats, Ints

Index = slice | Ints
"""Indices of a dimension: a slice where they go up in equal steps, else one number each."""

# A run is copied on its own where there are at most `_FEW` in all, or where it has `_LARGE` elements and is not narrow.
_FEW, _LARGE, _NARROW = 16, 1 << 14, 16


class How(IntEnum):
    """How a new index is made. Of an index along several axes, or an element along several dimensions, the smaller of
    two decides: an element is zero where any of its indices is, else fresh where any of them is."""

    ZERO = 0  # of nothing old: its elements are zero
    FRESH = 1  # of nothing old: its elements take the tensor's init
    MIX = 2  # of all old indices: a linear combination
    SUM = 3  # of one or a few old indices, each times a factor


@dataclass(frozen=True)
class Term:
    """For each index of a run an old index, or for a mix a linear combination, and what it is multiplied by. A slice of
    one index stands for all indices of the run, and so does a single factor."""

    source: Index
    factor: float | Floats

    @property
    def is_copy(self) -> bool:
        """Whether these are neighbouring old indices, in order and as they are."""
        return isinstance(self.source, slice) and self.source.step == 1 and bool(np.all(self.factor == 1.0))


@dataclass(frozen=True)
class IndexRun:
    """New indices that are made alike: where they are in the box, how many they are, and what they are made of. The
    terms of a SUM are added (a plain copy has one); the one term of a MIX names the linear combinations."""

    place: Index
    size: int
    how: How
    terms: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Entries:
    """What each of n new indices is made of.

    how     [n] of `How`
    source  int64 [n, K]: the old indices of a SUM, -1 for none; the first column has one
    factor  float64 [n, K]: what these are multiplied by; the factor of a MIX is in the first column
    mix     int64 [n]: the linear combination of a MIX, -1 for none
    """

    how: Ints
    source: Ints
    factor: Floats
    mix: Ints

    def times(self, inner: Entries, inner_size: int) -> Entries:
        """The same along two axes, of which `inner`, with `inner_size` old indices, moves faster."""
        how = np.minimum(self.how, inner.how)
        n = len(how)
        none = (self.source[:, :, None] < 0) | (inner.source[:, None, :] < 0)
        joint = self.source[:, :, None] * inner_size + inner.source[:, None, :]
        return Entries(
            how,
            np.where(none, -1, joint).reshape(n, -1),
            (self.factor[:, :, None] * inner.factor[:, None, :]).reshape(n, -1),
            np.where(how == How.MIX, self.mix * inner_size + inner.source[:, 0], -1),
        )

    def packed(self) -> Entries:
        """The same with old indices to the left and columns that hold none left out (but for the first one)."""
        if self.source.shape[1] == 1:
            return self
        order = np.argsort(self.source < 0, axis=1, kind="stable")
        source, factor = np.take_along_axis(self.source, order, axis=1), np.take_along_axis(self.factor, order, axis=1)
        columns = max(1, int((source >= 0).any(axis=0).sum()))
        return replace(self, source=source[:, :columns], factor=factor[:, :columns])


def index_runs(entries: Entries, across: int) -> list[IndexRun]:
    """The runs of these indices, each of which has `across` elements. Each index is in one run."""
    count = (entries.source >= 0).sum(axis=1)
    # Equal for two indices that are made in the same way, of equally many old ones.
    alike = entries.how * (entries.source.shape[1] + 1) + count
    runs: list[IndexRun] = []
    for start, stop, is_run in _stretches(entries, alike, across):
        if is_run:
            groups = [np.arange(start, stop)]
        else:
            groups = [start + np.flatnonzero(alike[start:stop] == key) for key in np.unique(alike[start:stop])]
        runs += [_run(entries, index) for index in groups]
    return runs


def as_index(index: Ints) -> Index:
    """Ascending or equal indices in equal steps as a slice, others as they are."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step < 0 or (len(index) > 2 and (index[1:] - index[:-1] != step).any()):
        return index
    return slice(int(index[0]), int(index[-1]) + 1, step or None)


def _run(entries: Entries, index: Ints) -> IndexRun:
    """The run of these indices, which are made alike."""
    how = How(entries.how[index[0]])
    olds: list[Ints] = []
    if how == How.MIX:
        olds = [entries.mix[index]]
    elif how == How.SUM:
        count = int((entries.source[index[0]] >= 0).sum())
        olds = [entries.source[index, k] for k in range(count)]
    terms = tuple(Term(as_index(old), _as_factor(entries.factor[index, k])) for k, old in enumerate(olds))
    return IndexRun(as_index(index), len(index), how, terms)


def _as_factor(factor: Floats) -> float | Floats:
    return float(factor[0]) if (factor == factor[0]).all() else factor


def _stretches(entries: Entries, alike: Ints, across: int) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether this is one run): runs that are long enough to copy one by one, and between them stretches
    of those that are not. In a run each index continues the one before it: its old indices are the next ones, with the
    same factors, or its linear combination is the same."""
    source, factor, mix = entries.source, entries.factor, entries.mix
    next_ones = (source[1:] < 0) | ((source[1:] == source[:-1] + 1) & (factor[1:] == factor[:-1]))
    continues = (alike[1:] == alike[:-1]) & next_ones.all(axis=1) & (mix[1:] == mix[:-1])
    edges = [0, *(np.flatnonzero(~continues) + 1).tolist(), len(alike)]
    few = len(edges) <= _FEW
    behind = 0  # Every index before this one is in a stretch already.
    for start, stop in itertools.pairwise(edges):
        if few or (stop - start >= _NARROW and (stop - start) * across >= _LARGE):
            if behind < start:
                yield behind, start, False
            yield start, stop, True
            behind = stop
    if behind < len(alike):
        yield behind, len(alike), False

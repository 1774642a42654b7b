"""The map of one dimension of a tensor: what its new indices are made of, composed of the maps of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from growth.errors import GrowthError
from growth.evaluate.index_runs import Entries, How, IndexRun, index_runs
from growth.family import Dim
from growth.maps import AxisMap, Floats, Ints, over_further
from growth.moments import Moments

_SCATTERED = 1 << 20  # A region with fewer elements than this is read in one piece, wherever its sources are.
_GAP = 1 << 14  # A stretch without sources of up to so many elements is read rather than left out.

Spans = tuple[tuple[int, int], ...]
"""Ranges of old indices, ascending."""


@dataclass(frozen=True, eq=False)
class Copies:
    """For each index of a box the copies of its source (new indices, itself included, -1 for none, packed to the left)
    and the share of each in what their readers read; `noise` is the standard deviation of the relative noise."""

    index: Ints  # [n, C]
    share: Floats  # [n, C], rows sum to one
    noise: float

    def part(self, start: int, stop: int) -> Copies:
        """Those of the indices start..stop."""
        return replace(self, index=self.index[start:stop], share=self.share[start:stop])

    @cached_property
    def several(self) -> bool:
        """Whether any index has another copy."""
        return bool((self.index[:, 1:] >= 0).any())

    @cached_property
    def span(self) -> tuple[int, int]:
        """The smallest range that holds all copies."""
        members = self.index[self.index >= 0]
        return int(members.min()), int(members.max()) + 1

    @cached_property
    def runs(self) -> Ints:
        """Where ranges of indices begin whose copies are neighbours and have equal shares."""
        following = np.where(self.index >= 0, self.index + 1, -1)
        same = (self.index[1:] == following[:-1]) & (self.share[1:] == self.share[:-1])
        return np.append(0, np.flatnonzero(~same.all(axis=1)) + 1)


@dataclass(frozen=True, eq=False)
class DimMap:
    """What a range of the new indices of a dimension is made of.

    entries  of each new index; their sources are counted from the start of `spans`, leaving out what lies between
    spans    the old indices that are read for the sources; none where no index has a source
    whole    the old size of the dimension
    mixes    float64 [M, old size of the first axis], or of all axes: the linear combinations that the entries name.
             Number row * rest + i is that row of `mixes` at old index i of the axes that are not combined, of `rest`
             old indices together
    copies   for readers that take noise
    """

    entries: Entries
    spans: Spans
    whole: int
    mixes: Floats | None = None
    copies: Copies | None = None

    @cached_property
    def mixed(self) -> bool:
        """Whether any index is a linear combination."""
        return bool((self.entries.how == How.MIX).any())

    @cached_property
    def rest(self) -> int:
        """The old size of the axes that linear combinations do not combine: those behind the first one, or none."""
        assert self.mixes is not None
        return self.whole // self.mixes.shape[1]

    @cached_property
    def rows(self) -> tuple[int, int]:
        """The smallest range of the rows of `mixes` that holds all that are used."""
        used = self.entries.mix[self.entries.how == How.MIX]
        return int(used.min()) // self.rest, int(used.max()) // self.rest + 1

    @cached_property
    def _runs(self) -> dict[int, list[IndexRun]]:
        return {}

    def runs(self, across: int) -> list[IndexRun]:
        """Its indices in runs, where there are `across` elements at one index."""
        if across not in self._runs:
            self._runs[across] = index_runs(self.entries, across)
        return self._runs[across]

    def scattered(self, across: int) -> DimMap:
        """The same map with `spans` that leave out large stretches without a source, if that spares half of them; old
        indices have `across` elements."""
        source = self.entries.source
        used = np.unique(source[source >= 0])
        if not len(used) or (len(self.spans) == 1 and self.spans[0][1] - self.spans[0][0] < 2 * len(used)):
            return self
        low, high = self.spans[0][0], self.spans[-1][1]
        if (high - low) * across < _SCATTERED:
            return self
        edges = np.flatnonzero(np.diff(used) > max(1, _GAP // across)) + 1
        groups = np.split(used, edges)
        starts = np.array([g[0] for g in groups])
        lengths = np.array([g[-1] + 1 - g[0] for g in groups])
        if 2 * lengths.sum() > high - low:
            return self
        group = np.maximum(np.searchsorted(starts, source, side="right") - 1, 0)
        moved = source - starts[group] + (np.cumsum(lengths) - lengths)[group]
        entries = replace(self.entries, source=np.where(source >= 0, moved, -1))
        spans = tuple((low + int(a), low + int(a + n)) for a, n in zip(starts, lengths, strict=True))
        return replace(self, entries=entries, spans=spans)


def dim_map(dim: Dim, axes: Sequence[AxisMap], start: int, stop: int, kind: str, moments: Moments) -> DimMap:
    """What the new indices start..stop of a dimension are made of, for weights or a moment (`kind`); `axes` are the
    maps of its axes. The map of a dimension is the Kronecker product of these.

    Raises GrowthError where weights need linear combinations along another axis than the first one.
    """
    weight = kind == "weight"
    if weight and (mixing := [m.axis for m in axes[1:] if m.mixes_of(dim.role) is not None]):
        raise GrowthError(f"{mixing[0]}: a linear combination needs the first axis of {' x '.join(dim.axes)}")
    along = np.unravel_index(np.arange(start, stop), [m.new for m in axes])
    entries = _along_axis(axes[0], along[0], dim.role, kind, moments)
    for m, index in zip(axes[1:], along[1:], strict=True):
        entries = entries.times(_along_axis(m, index, dim.role, kind, moments), m.old)
    entries = entries.packed()
    whole = prod(m.old for m in axes)
    mixes = _combinations(axes[0], dim.role, whole) if weight else None
    used = entries.source[entries.source >= 0]
    if not used.size:
        return DimMap(entries, (), whole, mixes)
    low, high = int(used.min()), int(used.max()) + 1
    entries = replace(entries, source=np.where(entries.source >= 0, entries.source - low, -1))
    return DimMap(entries, ((low, high),), whole, mixes)


def _combinations(m: AxisMap, role: str, whole: int) -> Floats | None:
    """The linear combinations of the first axis of a dimension of `whole` old indices.

    Raises GrowthError where they are of more indices than the dimension has.
    """
    mixes = m.mixes_of(role)
    if mixes is None or mixes.shape[1] in (m.old, whole):
        return mixes
    if whole != m.old:
        raise GrowthError(f"{m.axis}: a linear combination of {mixes.shape[1]} indices, where {whole} are together")
    mean: Floats = over_further(mixes, m.old)
    return mean


def _along_axis(m: AxisMap, index: Ints, role: str, kind: str, moments: Moments) -> Entries:
    """What these new indices of an axis are made of, in a dimension of this role."""
    source, factor = m.source[index], m.factor(role, kind)[index]
    mix = np.full(len(index), -1)
    if kind == "weight" and m.mixes_of(role) is not None:
        mix = np.where(source[:, 0] < 0, m.mix[index], -1)
    if kind != "weight" and moments.new == "reset":
        source = np.where(m.born[index, None], -1, source)
    if kind != "weight" and moments.old == "copy":
        factor = np.ones_like(factor)
    without = How.ZERO if m.starts_at_zero(role) else How.FRESH
    how = np.where(source[:, 0] >= 0, How.SUM, np.where(mix >= 0, How.MIX, without))
    return Entries(how, source, factor, mix)


def find_copies(m: DimMap, noise: float) -> Copies:
    """The copies of the source of each index, from the map of a whole dimension that is read; an index without a source
    is alone."""
    first = m.entries.source[:, 0]
    origin = np.where(first >= 0, first, m.whole + np.arange(len(first)))
    members_of: dict[int, list[int]] = {}
    for i, key in enumerate(origin.tolist()):
        members_of.setdefault(key, []).append(i)
    index = np.full((len(first), max(map(len, members_of.values()))), -1)
    share = np.zeros(index.shape)
    for members in members_of.values():
        factor = m.entries.factor[members, 0]
        index[members, : len(members)] = members
        share[members, : len(members)] = factor / factor.sum()
    return Copies(index, share, noise)

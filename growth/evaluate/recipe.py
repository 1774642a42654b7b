"""What one box of a new tensor is made of: which regions of which old tensors, and a map for each dimension."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Literal

import numpy as np

from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.index_runs import IndexRun, index_runs
from growth.family import GENERAL, Dim
from growth.maps import AxisMap, Bools, Floats, Ints, LayerMap

KINDS = ("weight", "exp_avg", "exp_avg_sq")
_CACHED = 256  # maps of dimensions kept for the next block
_SCATTERED = 1 << 20  # elements between sources that are not worth reading
_GAP = 1 << 14  # elements that are read rather than left out

Spans = tuple[tuple[int, int], ...]
"""Ranges of old indices, ascending."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What becomes of Adam's moments, of old elements and of new ones that are made of old ones: "transform" (as
    their gradients), "copy" (as they are) or "reset" (zero, and counted as the newest generation)."""

    old: Literal["transform", "copy", "reset"] = "transform"
    new: Literal["transform", "copy", "reset"] = "reset"

    def __post_init__(self) -> None:
        for region, value in (("old", self.old), ("new", self.new)):
            if value not in ("transform", "copy", "reset"):
                raise GrowthError(f"moments: {region} is {value!r}: choose transform, copy or reset")
        if self.old == "reset" and self.new != "reset":
            raise GrowthError("moments: new ones cannot be kept where old ones are reset; reset both")


DEFAULT_MOMENTS = Moments()


@dataclass(frozen=True, eq=False)
class Copies:
    """For each index of a box the copies of its source (new indices, itself included, -1 for none, packed to the left)
    and the share of each in what their readers read; `noise` is the standard deviation of the relative noise."""

    index: Ints  # [n, C]
    share: Floats  # [n, C], rows sum to one
    noise: float

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
    """The map of one dimension of a tensor on the indices start..stop: the Kronecker product of its axes' maps."""

    source: Ints  # [n, K], -1 for none, packed to the left; counted within `spans`
    factor: Floats  # [n, K]
    zero: Bools  # [n]: an index without a source that is zero
    whole: int  # the old size of the dimension
    mixes: Floats | None  # [M, old size of the first axis]
    mix: Ints  # [n]: which row of `mixes`, times the size of the further axes; -1 for none
    copies: Copies | None
    spans: Spans  # the old indices that the sources are

    @cached_property
    def _runs(self) -> dict[int, list[IndexRun]]:
        return {}

    def runs(self, across: int) -> list[IndexRun]:
        """Its runs, where there are `across` elements at one index."""
        if across not in self._runs:
            self._runs[across] = index_runs(self.source, self.factor, self.mix, self.zero, across)
        return self._runs[across]

    def scattered(self, across: int) -> DimMap:
        """The same map with `spans` that leave out large stretches without a source, if that spares half of them; old
        indices have `across` elements."""
        used = np.unique(self.source[self.source >= 0])
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
        group = np.maximum(np.searchsorted(starts, self.source, side="right") - 1, 0)
        moved = self.source - starts[group] + (np.cumsum(lengths) - lengths)[group]
        spans = tuple((low + int(a), low + int(a + n)) for a, n in zip(starts, lengths, strict=True))
        return replace(self, source=np.where(self.source >= 0, moved, -1), spans=spans)


def boxes_of(spans: tuple[Spans, ...]) -> tuple[Box, ...]:
    """The old boxes that have these spans, in order; only the first dimension may have more than one."""
    rest = [s[0] for s in spans[1:]]
    return tuple(Box((a, *(s[0] for s in rest)), (b, *(s[1] for s in rest))) for a, b in spans[0])


@dataclass(frozen=True)
class Source:
    """One old tensor that a box is made of, times a factor."""

    name: str
    factor: float


@dataclass(frozen=True, eq=False)
class Recipe:
    """All that the evaluation of one box needs to know."""

    tensor: LogicalTensor
    box: Box
    dims: tuple[DimMap, ...] = ()
    sources: tuple[Source, ...] = ()
    fresh: bool = False  # everything takes the init of the tensor, whatever the axes say
    all_zero: bool = False
    noise: float = 0.0

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The old boxes that are read of each source; none where no element is made of old ones alone."""
        spans = tuple(d.spans for d in self.dims)
        return boxes_of(spans) if self.sources and all(spans) else ()

    def reads(self) -> Iterator[Box]:
        """All old boxes that are read of each source, those of linear combinations as well."""
        yield from self.boxes
        if not self.sources:
            return
        for mixed in itertools.product(*([False, True] if (d.mix >= 0).any() else [False] for d in self.dims)):
            spans = tuple(((0, d.whole),) if m else d.spans for d, m in zip(self.dims, mixed, strict=True))
            if any(mixed) and all(spans):
                yield from (b for b in boxes_of(spans) if len(self.boxes) != 1 or self.boxes[0].intersect(b) != b)


def check_box(tensor: LogicalTensor, box: Box, kind: str) -> None:
    """Raise GrowthError unless `box` lies in the tensor and `kind` is one that a plan evaluates."""
    if kind not in KINDS:
        raise GrowthError(f"there is no kind {kind!r}: choose one of {', '.join(KINDS)}")
    inside = len(box.start) == len(box.stop) == len(tensor.shape) and all(
        0 <= a <= b <= n for a, b, n in zip(box.start, box.stop, tensor.shape, strict=True)
    )
    if not inside:
        raise GrowthError(f"{tensor.name}: {box} does not lie in the shape {tensor.shape}")


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of one step, from `old` to `new`."""

    old: Architecture
    new: Architecture
    layers: LayerMap | None
    axes: Mapping[str, AxisMap]
    moments: Moments

    def recipe(self, name: str, box: Box, kind: str) -> Recipe:
        """What the box of the new tensor `name` is made of; raises GrowthError for an unknown tensor, box or kind."""
        tensor = self.new.tensor(name)
        check_box(tensor, box, kind)
        moment = kind != "weight"
        if box.numel == 0 or (moment and self.moments.old == "reset"):
            return Recipe(tensor, box, all_zero=True)
        pairs: list[tuple[int | None, float]] = [(tensor.layer, 1.0)]
        noise = 0.0
        if self.layers is not None and tensor.layer is not None:
            m, i = self.layers, tensor.layer
            if (m.zero_branch[i] and tensor.spec.branch) or (moment and m.born[i] and self.moments.new == "reset"):
                return Recipe(tensor, box, all_zero=True)
            pairs = [(int(s), float(c)) for s, c in zip(m.source[i], m.coefficient[i], strict=True) if s >= 0]
            if not pairs:
                return Recipe(tensor, box, fresh=not moment, all_zero=moment)
            if tensor.spec.init in ("normal", "branch"):
                noise = float(m.noise[i])
        if self._ahead(tensor, box):
            pairs = [(self.old.next_like(int(layer or 0)), c) for layer, c in pairs]
        dims = [self.dim(dim, a, b, kind) for dim, a, b in zip(tensor.spec.dims, box.start, box.stop, strict=True)]
        if dims[0].spans:
            dims[0] = self._scattered(dims[0], prod(d.spans[0][1] - d.spans[0][0] for d in dims[1:] if d.spans))
        sources: tuple[Source, ...] = ()
        if all(d.spans or (d.mix >= 0).any() for d in dims):
            sources = tuple(
                Source(
                    tensor.spec.name if layer is None else tensor.spec.name.format(layer=layer),
                    1.0 if moment and self.moments.old == "copy" else c * c if kind == "exp_avg_sq" else c,
                )
                for layer, c in pairs
            )
        return Recipe(tensor, box, tuple(dims), sources, noise=noise)

    @cached_property
    def _scattered(self) -> Callable[[DimMap, int], DimMap]:
        return lru_cache(maxsize=_CACHED)(DimMap.scattered)

    def cuts(self, name: str, box: Box) -> list[Box]:
        """The parts of a box that are each made of one set of layers: cut where rows come from the next one."""
        tensor = self.new.tensor(name)
        ahead = self._ahead_rows(tensor)
        if ahead is None:
            return [box]
        d, mask = ahead
        inside = mask[box.start[d] : box.stop[d]]
        edges = [0, *(np.flatnonzero(inside[1:] != inside[:-1]) + 1).tolist(), len(inside)]
        return [
            Box(
                (*box.start[:d], box.start[d] + a, *box.start[d + 1 :]),
                (*box.stop[:d], box.start[d] + b, *box.stop[d + 1 :]),
            )
            for a, b in itertools.pairwise(edges)
        ]

    def _ahead_rows(self, tensor: LogicalTensor) -> tuple[int, Bools] | None:
        if tensor.layer is None:
            return None
        for d, dim in enumerate(tensor.spec.dims):
            if GENERAL[dim.role] == "write" and any(a in self.axes and self.axes[a].ahead.any() for a in dim.axes):
                mask = np.zeros(1, dtype=bool)
                for axis in dim.axes:
                    n = self.new.sizes[axis]
                    own = self.axes[axis].ahead if axis in self.axes else np.zeros(n, dtype=bool)
                    mask = (mask[:, None] | own[None, :]).reshape(-1)
                return d, mask
        return None

    def _ahead(self, tensor: LogicalTensor, box: Box) -> bool:
        ahead = self._ahead_rows(tensor)
        return ahead is not None and bool(ahead[1][box.start[ahead[0]]])

    @cached_property
    def dim(self) -> Callable[[Dim, int, int, str], DimMap]:
        """The map of the new indices start..stop of a dimension, for weights or for a moment: dim(dim, start, stop,
        kind). The blocks of a model ask for the same ones again and again."""
        return lru_cache(maxsize=_CACHED)(self._dim)

    def _dim(self, dim: Dim, start: int, stop: int, kind: str) -> DimMap:
        parts = [self.axes.get(axis) or AxisMap.identity(axis, self.old.sizes[axis]) for axis in dim.axes]
        index = np.arange(start, stop)
        source: Ints = np.zeros((len(index), 1), dtype=np.int64)
        factor: Floats = np.ones((len(index), 1))
        zero = np.zeros(len(index), dtype=bool)
        mixes = None
        stride = prod(part.new for part in parts)
        for n, part in enumerate(parts):
            stride //= part.new
            i = index // stride % part.new
            src, own = part.source[i], part.factor(dim.role, kind)[i]
            if kind != "weight":
                if self.moments.new == "reset":
                    src = np.where(part.born[i, None], -1, src)
                if self.moments.old == "copy":
                    own = np.ones_like(own)
            elif (rows := part.mixes_of(dim.role)) is not None:
                if n > 0:
                    raise GrowthError(
                        f"{part.axis}: a linear combination needs the first axis of {' x '.join(dim.axes)}"
                    )
                mixes = rows
                mixed = (src[:, 0] < 0) & (part.mix[i] >= 0)
                src = np.where(mixed[:, None] & (np.arange(src.shape[1]) == 0), part.old + part.mix[i, None], src)
            none = (source[:, :, None] < 0) | (src[:, None, :] < 0)
            joint = source[:, :, None] * part.old + src[:, None, :]
            source = np.where(none, -1, joint).reshape(len(index), -1)
            factor = (factor[:, :, None] * own[:, None, :]).reshape(len(index), -1)
            zero |= (src[:, 0] < 0) & part.starts_at_zero(dim.role)
        whole = prod(part.old for part in parts)
        mix = np.where(source[:, 0] >= whole, source[:, 0] - whole, -1)
        source = np.where(source < whole, source, -1)
        if source.shape[1] > 1:  # packed to the left
            order = np.argsort((source < 0) & (mix[:, None] < 0), axis=1, kind="stable")
            source, factor = np.take_along_axis(source, order, axis=1), np.take_along_axis(factor, order, axis=1)
            keep = max(1, int((source >= 0).any(axis=0).sum()))
            source, factor = source[:, :keep], factor[:, :keep]
        used = source[source >= 0]
        spans: Spans = ((int(used.min()), int(used.max()) + 1),) if used.size else ()
        if spans:
            source = np.where(source >= 0, source - spans[0][0], -1)
        copies = None
        if kind == "weight" and dim.role == "read" and any(part.noise for part in parts):
            found = self._copies(dim)
            noise = max(part.noise for part in parts)
            copies = Copies(found.index[start:stop], found.share[start:stop], noise)
        return DimMap(source, factor, zero, whole, mixes, mix, copies, spans)

    @cached_property
    def _copies(self) -> Callable[[Dim], Copies]:
        """The copies of the source of each index, over a whole dimension."""
        return lru_cache(maxsize=_CACHED)(self._find_copies)

    def _find_copies(self, dim: Dim) -> Copies:
        quiet = {axis: m.without_noise() for axis, m in self.axes.items() if axis in dim.axes}
        m = Maps(self.old, self.new, None, quiet, self.moments).dim(dim, 0, dim.size(self.new.sizes), "weight")
        groups: dict[int, list[int]] = {}
        for i, s in enumerate(m.source[:, 0].tolist()):
            groups.setdefault(s if s >= 0 else -1 - i, []).append(i)
        index = np.full((len(m.source), max(map(len, groups.values()))), -1)
        share = np.zeros(index.shape)
        for members in groups.values():
            read = m.factor[members, 0]
            index[members, : len(members)] = members
            share[members, : len(members)] = read / read.sum()
        return Copies(index, share, 0.0)

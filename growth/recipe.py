"""What one box of a new tensor is made of: which regions of which old tensors, and a map for each dimension."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Literal

import numpy as np

from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.family import GENERAL, Dim
from growth.maps import AxisMap, Bools, Floats, Ints, LayerMap

KINDS = ("weight", "exp_avg", "exp_avg_sq")
_CACHED = 256  # maps of dimensions kept for the next block


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


@dataclass(frozen=True)
class Copies:
    """For each index of a box the copies of its source (new indices, itself included, -1 for none) and the share of
    each in what their readers read; `noise` is the standard deviation of the relative noise."""

    index: Ints  # [n, C]
    share: Floats  # [n, C], rows sum to one
    noise: float


@dataclass(frozen=True)
class DimMap:
    """The map of one dimension of a tensor on the indices start..stop: the Kronecker product of its axes' maps."""

    source: Ints  # [n, K], -1 for none
    factor: Floats  # [n, K]
    zero: Bools  # [n]: an index without a source that is zero
    whole: int  # the old size of the dimension; sources from there on are rows of `mixes`
    mixes: Floats | None  # [M, old size of the first axis]
    copies: Copies | None

    @cached_property
    def span(self) -> tuple[int, int] | None:
        """The smallest range of old indices that holds every source, or None without one."""
        used = self.source[self.source >= 0]
        if used.size and used.max() >= self.whole:
            return 0, self.whole
        return (int(used.min()), int(used.max()) + 1) if used.size else None

    @cached_property
    def runs(self) -> list[tuple[int, int, int, float, bool]]:
        """(start, stop, source or -1, factor, zero) of the maximal runs; only for K = 1."""
        src, factor = self.source[:, 0], self.factor[:, 0]
        same = (src[1:] == src[:-1] + 1) & (src[:-1] >= 0) & (factor[1:] == factor[:-1])
        same |= (src[1:] < 0) & (src[:-1] < 0) & (self.zero[1:] == self.zero[:-1])
        edges = [0, *(np.flatnonzero(~same) + 1).tolist(), len(src)]
        return [(a, b, int(src[a]), float(factor[a]), bool(self.zero[a])) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Source:
    """One old tensor that a box is made of, times a factor, and the region of it that is needed."""

    name: str
    box: Box
    factor: float


@dataclass(frozen=True)
class Recipe:
    """All that the evaluation of one box needs to know."""

    tensor: LogicalTensor
    box: Box
    dims: tuple[DimMap, ...] = ()
    sources: tuple[Source, ...] = ()
    fresh: bool = False  # everything takes the init of the tensor, whatever the axes say
    all_zero: bool = False
    noise: float = 0.0


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
            pairs = [(min(int(layer or 0) + 1, self.old.layers - 1), c) for layer, c in pairs]
        dims = tuple(self.dim(dim, a, b, kind) for dim, a, b in zip(tensor.spec.dims, box.start, box.stop, strict=True))
        spans = [d.span for d in dims]
        sources: tuple[Source, ...] = ()
        if all(spans):
            old_box = Box(tuple(s[0] for s in spans if s), tuple(s[1] for s in spans if s))
            sources = tuple(
                Source(
                    tensor.spec.name if layer is None else tensor.spec.name.format(layer=layer),
                    old_box,
                    1.0 if moment and self.moments.old == "copy" else c * c if kind == "exp_avg_sq" else c,
                )
                for layer, c in pairs
            )
        return Recipe(tensor, box, dims, sources, noise=noise)

    def cuts(self, name: str, box: Box) -> list[Box]:
        """The parts of a box that are each made of one set of layers: cut where rows come from the next layer."""
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
        keep = (source >= 0).any(axis=0) | (np.arange(source.shape[1]) == 0)
        copies = None
        if kind == "weight" and dim.role == "read" and any(part.noise for part in parts):
            found = self._copies(dim)
            noise = max(part.noise for part in parts)
            copies = Copies(found.index[start:stop], found.share[start:stop], noise)
        return DimMap(source[:, keep], factor[:, keep], zero, prod(part.old for part in parts), mixes, copies)

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

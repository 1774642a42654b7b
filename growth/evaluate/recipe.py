"""What one box of a new tensor is made of: which regions of which old tensors, and a map for each dimension."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

import numpy as np

from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.dimension import Copies, DimMap, Spans, dim_map, find_copies
from growth.evaluate.index_runs import How
from growth.family import GENERAL, Dim
from growth.maps import AxisMap, Bools, LayerMap
from growth.moments import Moments

KINDS = ("weight", "exp_avg", "exp_avg_sq")
_CACHED = 256  # So many maps of dimensions are remembered: the layers of a model ask for the same ones.


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
    """All that the evaluation of one box needs to know.

    how      ZERO or FRESH: all of the box is, whatever its axes say. SUM: its dimensions say what it is made of
    dims     the map of each dimension
    sources  the old tensors that are added: one of each old layer, or the one outside the layers; none where no
             element of the box has anything old in it
    noise    the standard deviation of the relative noise of a layer that is a copy
    """

    tensor: LogicalTensor
    box: Box
    how: How
    dims: tuple[DimMap, ...] = ()
    sources: tuple[Source, ...] = ()
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
        for mixed in itertools.product(*([False, True] if d.mixed else [False] for d in self.dims)):
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
        if box.numel == 0 or self._starts_at_zero(tensor, kind):
            return Recipe(tensor, box, How.ZERO)
        layers = self._old_layers(tensor, box)
        if not layers:
            return Recipe(tensor, box, How.FRESH if kind == "weight" else How.ZERO)
        dims = [self.dim(dim, a, b, kind) for dim, a, b in zip(tensor.spec.dims, box.start, box.stop, strict=True)]
        if dims[0].spans:
            across = prod(d.spans[0][1] - d.spans[0][0] for d in dims[1:] if d.spans)
            dims[0] = self._scattered(dims[0], across)
        sources: tuple[Source, ...] = ()
        if all(d.spans or d.mixed for d in dims):
            sources = tuple(self._source(tensor, layer, coefficient, kind) for layer, coefficient in layers)
        return Recipe(tensor, box, How.SUM, tuple(dims), sources, self._layer_noise(tensor))

    def _starts_at_zero(self, tensor: LogicalTensor, kind: str) -> bool:
        """Whether all of a tensor is zero, whatever its axes say."""
        moment = kind != "weight"
        if moment and self.moments.old == "reset":
            return True
        if self.layers is None or tensor.layer is None:
            return False
        zero_branch = self.layers.zero_branch[tensor.layer] and tensor.spec.branch
        return bool(zero_branch or (moment and self.layers.born[tensor.layer] and self.moments.new == "reset"))

    def _old_layers(self, tensor: LogicalTensor, box: Box) -> list[tuple[int | None, float]]:
        """The old layers that a box is the sum of, each with its coefficient; None stands for outside the layers."""
        layer = tensor.layer
        if layer is None:
            return [(None, 1.0)]
        layers = [(layer, 1.0)]
        if self.layers is not None:
            pairs = zip(self.layers.source[layer], self.layers.coefficient[layer], strict=True)
            layers = [(int(source), float(c)) for source, c in pairs if source >= 0]
        if self._ahead(tensor, box):
            layers = [(self.old.next_like(source), c) for source, c in layers]
        return [*layers]

    def _source(self, tensor: LogicalTensor, layer: int | None, coefficient: float, kind: str) -> Source:
        name = tensor.spec.name if layer is None else tensor.spec.name.format(layer=layer)
        if kind != "weight" and self.moments.old == "copy":
            return Source(name, 1.0)
        return Source(name, coefficient * coefficient if kind == "exp_avg_sq" else coefficient)

    def _layer_noise(self, tensor: LogicalTensor) -> float:
        """The relative noise that a tensor takes because its layer is a copy; norms and biases take none."""
        if self.layers is None or tensor.layer is None or tensor.spec.init not in ("normal", "branch"):
            return 0.0
        return float(self.layers.noise[tensor.layer])

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
        return [box.with_dim(d, box.start[d] + a, box.start[d] + b) for a, b in itertools.pairwise(edges)]

    def _ahead_rows(self, tensor: LogicalTensor) -> tuple[int, Bools] | None:
        """The dimension of a layer's tensor that has indices made of the next layer, and which these are; None where
        there is no such dimension."""
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
        axes = self._axis_maps(dim)
        m = dim_map(dim, axes, start, stop, kind, self.moments)
        if kind == "weight" and GENERAL[dim.role] == "read" and any(axis.noise for axis in axes):
            return replace(m, copies=self._copies(dim).part(start, stop))
        return m

    def _axis_maps(self, dim: Dim) -> list[AxisMap]:
        return [self.axes.get(axis) or AxisMap.identity(axis, self.old.sizes[axis]) for axis in dim.axes]

    @cached_property
    def _copies(self) -> Callable[[Dim], Copies]:
        """The copies of the source of each index, over a whole dimension."""
        return lru_cache(maxsize=_CACHED)(self._find_copies)

    def _find_copies(self, dim: Dim) -> Copies:
        axes = self._axis_maps(dim)
        whole = dim_map(dim, axes, 0, dim.size(self.new.sizes), "weight", self.moments)
        return find_copies(whole, max(axis.noise for axis in axes))

"""One step of a plan on one box: gather, scale, and draw what is new.

The value of an element never depends on the box in which it is asked for: factors are applied in one order (layer,
then dimension by dimension), sums run over the sources in their order, and random numbers have addresses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from growth import philox
from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.family import Dim
from growth.maps import AxisMap, Bools, Floats, Ints, LayerMap

Read = Callable[[str, str, Box], torch.Tensor]
KINDS = ("weight", "exp_avg", "exp_avg_sq")
_MAX_REGIONS = 2048  # more runs than this are gathered index by index


@dataclass(frozen=True)
class DimMap:
    """The map of one dimension of a tensor on the indices start..stop: the Kronecker product of its axes' maps."""

    source: Ints  # [n, K], -1 for none
    factor: Floats  # [n, K]
    zero: Bools  # [n]: an index without a source that is zero
    whole: int  # the old size of the dimension; sources from there on are rows of `mixes`
    mixes: Floats  # [M, whole]

    @property
    def span(self) -> tuple[int, int] | None:
        """The smallest range of old indices that holds every source, or None without one."""
        used = self.source[self.source >= 0]
        if used.size and used.max() >= self.whole:
            return 0, self.whole
        return (int(used.min()), int(used.max()) + 1) if used.size else None

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


def dim_map(dim: Dim, old: Architecture, maps: dict[str, AxisMap], start: int, stop: int, kind: str) -> DimMap:
    """The map of the new indices start..stop of a dimension, for weights or for a moment (where born is zero)."""
    parts = [maps.get(axis) or AxisMap.identity(axis, old.sizes[axis]) for axis in dim.axes]
    index = np.arange(start, stop)
    source: Ints = np.zeros((len(index), 1), dtype=np.int64)
    factor: Floats = np.ones((len(index), 1))
    zero = np.zeros(len(index), dtype=bool)
    stride = prod(part.new for part in parts)
    for part in parts:
        stride //= part.new
        i = index // stride % part.new
        src = part.source[i]
        if kind != "weight":
            src = np.where(part.born[i, None] | (src >= part.old), -1, src)
        none = (source[:, :, None] < 0) | (src[:, None, :] < 0)
        joint = source[:, :, None] * part.old + src[:, None, :]
        source = np.where(none, -1, joint).reshape(len(index), -1)
        factor = (factor[:, :, None] * part.factor(dim.role, kind)[i][:, None, :]).reshape(len(index), -1)
        zero |= (src[:, 0] < 0) & part.starts_at_zero(dim.role)
    keep = (source >= 0).any(axis=0) | (np.arange(source.shape[1]) == 0)
    mixes = parts[0].mixes
    if len(parts) > 1 and any(len(part.mixes) for part in parts):
        raise GrowthError(f"{' x '.join(dim.axes)}: a linear combination needs an axis that is a dimension by itself")
    return DimMap(source[:, keep], factor[:, keep], zero, prod(part.old for part in parts), mixes)


@dataclass(frozen=True)
class Recipe:
    """All that the evaluation of one box needs to know."""

    tensor: LogicalTensor
    box: Box
    dims: tuple[DimMap, ...]
    sources: tuple[Source, ...]
    fresh: bool  # without a source everything takes the init of the tensor, whatever the axes say
    all_zero: bool


def recipe(
    old: Architecture,
    new: Architecture,
    layers: LayerMap | None,
    maps: dict[str, AxisMap],
    name: str,
    box: Box,
    kind: str,
) -> Recipe:
    """What the box of the new tensor `name` is made of; raises GrowthError for an unknown tensor, box or kind."""
    tensor = new.tensor(name)
    check_box(tensor, box, kind)
    if tensor.layer is None or layers is None:
        pairs = [(tensor.layer, 1.0)]
        zero_branch = born = False
    else:
        i = tensor.layer
        pairs = [(int(s), float(c)) for s, c in zip(layers.source[i], layers.coefficient[i], strict=True) if s >= 0]
        zero_branch, born = bool(layers.zero_branch[i]), bool(layers.born[i])
    if box.numel == 0 or (zero_branch and tensor.spec.branch) or (born and kind != "weight"):
        return Recipe(tensor, box, (), (), False, True)
    if not pairs:
        return Recipe(tensor, box, (), (), True, kind != "weight")
    dims = tuple(
        dim_map(dim, old, maps, a, b, kind) for dim, a, b in zip(tensor.spec.dims, box.start, box.stop, strict=True)
    )
    spans = [d.span for d in dims]
    sources: tuple[Source, ...] = ()
    if all(spans):
        old_box = Box(tuple(s[0] for s in spans if s), tuple(s[1] for s in spans if s))
        sources = tuple(
            Source(
                tensor.spec.name if layer is None else tensor.spec.name.format(layer=layer),
                old_box,
                c * c if kind == "exp_avg_sq" else c,
            )
            for layer, c in pairs
        )
    return Recipe(tensor, box, dims, sources, False, False)


def check_box(tensor: LogicalTensor, box: Box, kind: str) -> None:
    """Raise GrowthError unless `box` lies in the tensor and `kind` is one that a plan evaluates."""
    if kind not in KINDS:
        raise GrowthError(f"there is no kind {kind!r}: choose one of {', '.join(KINDS)}")
    inside = len(box.start) == len(box.stop) == len(tensor.shape) and all(
        0 <= a <= b <= n for a, b, n in zip(box.start, box.stop, tensor.shape, strict=True)
    )
    if not inside:
        raise GrowthError(f"{tensor.name}: {box} does not lie in the shape {tensor.shape}")


def init(tensor: LogicalTensor, box: Box, seed: int, init_std: float, layers: int) -> torch.Tensor:
    """The fresh init of a box, float32: what a model without a parent has there."""
    how = tensor.spec.init
    if how in ("one", "zero"):
        return torch.full(box.shape, 1.0 if how == "one" else 0.0)
    std = init_std / (2 * layers) ** 0.5 if how == "branch" else init_std
    return philox.normal(seed, tensor.name, tensor.shape, box).mul_(std)


def evaluate(r: Recipe, kind: str, read: Read, seed: int, init_std: float, layers: int) -> torch.Tensor:
    """The value of the recipe's box, in the dtype of what `read` returns (float32 if nothing is read)."""
    if r.all_zero:
        return torch.zeros(r.box.shape)
    if r.fresh:
        return init(r.tensor, r.box, seed, init_std, layers)

    def fresh(region: Box) -> torch.Tensor | float:
        if kind != "weight":
            return 0.0
        moved = Box(
            tuple(a + o for a, o in zip(region.start, r.box.start, strict=True)),
            tuple(b + o for b, o in zip(region.stop, r.box.start, strict=True)),
        )
        return init(r.tensor, moved, seed, init_std, layers)

    olds = [_with_mixes(_read(read, kind, s), r.dims) for s in r.sources]
    single = len(r.sources) <= 1 and all(d.source.shape[1] == 1 for d in r.dims)
    if single:
        runs = [d.runs() for d in r.dims]
        if prod(map(len, runs)) <= _MAX_REGIONS:
            return _by_runs(r, runs, olds, fresh)
    return _by_index(r, olds, fresh)


def _read(read: Read, kind: str, source: Source) -> torch.Tensor:
    old = read(kind, source.name, source.box)
    if tuple(old.shape) != source.box.shape:
        raise GrowthError(f"{source.name}: asked for {source.box} but was given the shape {tuple(old.shape)}")
    return old


def _with_mixes(old: torch.Tensor, dims: tuple[DimMap, ...]) -> torch.Tensor:
    """The old tensor with the linear combinations that are asked for appended to its dimensions."""
    for d, m in enumerate(dims):
        if m.source.size and m.source.max() >= m.whole:
            shape = list(old.shape)
            shape[d] = len(m.mixes)
            mixed = torch.zeros(shape, dtype=torch.float64)
            for row, weights in enumerate(m.mixes):
                total = mixed.select(d, row)
                for i in np.flatnonzero(weights).tolist():  # one by one: the same sum in any box
                    total.add_(old.select(d, i), alpha=float(weights[i]))
            old = torch.cat((old, mixed.to(old.dtype)), dim=d)
    return old


Fresh = Callable[[Box], "torch.Tensor | float"]


def _by_runs(
    r: Recipe, runs: list[list[tuple[int, int, int, float, bool]]], olds: list[torch.Tensor], fresh: Fresh
) -> torch.Tensor:
    """Contiguous runs of sources: one copy or one scaled copy for each region."""
    if olds and all(len(x) == 1 and x[0][3] == 1.0 for x in runs) and r.sources[0].factor == 1.0:
        return olds[0]
    out = torch.empty(r.box.shape, dtype=olds[0].dtype if olds else torch.float32)
    lows = r.sources[0].box.start if olds else ()
    for region in itertools.product(*runs):
        target = Box(tuple(x[0] for x in region), tuple(x[1] for x in region))
        part = out[target.slices()]
        if all(x[2] >= 0 for x in region):
            cut = tuple(slice(x[2] - low, x[2] - low + x[1] - x[0]) for x, low in zip(region, lows, strict=True))
            factors = [f for f in (r.sources[0].factor, *(x[3] for x in region)) if f != 1.0]
            if factors:
                torch.mul(olds[0][cut], factors[0], out=part)
                for f in factors[1:]:
                    part.mul_(f)
            else:
                part.copy_(olds[0][cut])
        elif any(x[4] for x in region):
            part.zero_()
        else:
            value = fresh(target)
            part.copy_(value) if isinstance(value, torch.Tensor) else part.fill_(value)
    return out


def _by_index(r: Recipe, olds: list[torch.Tensor], fresh: Fresh) -> torch.Tensor:
    """Any sources: gathered index by index and summed over layers, then over the sources of each dimension."""
    out = torch.zeros(r.box.shape, dtype=olds[0].dtype if olds else torch.float32)
    for source, old in zip(r.sources, olds, strict=True):
        for rows, columns in _terms(r.dims):
            term = old
            if source.factor != 1.0:
                term = term * source.factor
            for d, (index, k) in enumerate(zip(rows, columns, strict=True)):
                wanted = torch.from_numpy(r.dims[d].source[index, k] - source.box.start[d])
                term = term.index_select(d, wanted)
                factor = r.dims[d].factor[index, k]
                if (factor != 1.0).any():
                    shape = [-1 if i == d else 1 for i in range(term.dim())]
                    term = term * torch.from_numpy(factor).to(term.dtype).reshape(shape)
            first = source is r.sources[0] and not any(columns)
            if all(len(index) == n for index, n in zip(rows, r.box.shape, strict=True)):
                out = term if first else out + term
            else:
                where = np.ix_(*rows)
                out[where] = term if first else out[where] + term
    missing = np.zeros(r.box.shape, dtype=bool)
    zero = np.zeros(r.box.shape, dtype=bool)
    for d, m in enumerate(r.dims):
        shape = [-1 if i == d else 1 for i in range(len(r.dims))]
        missing |= (m.source[:, 0] < 0).reshape(shape)
        zero |= m.zero.reshape(shape)
    if (missing & ~zero).any():
        value = fresh(Box.whole(r.box.shape))
        mask = torch.from_numpy(missing & ~zero)
        drawn = value[mask].to(out.dtype) if isinstance(value, torch.Tensor) else value
        out[mask] = drawn
    return out


def _terms(dims: tuple[DimMap, ...]) -> Iterator[tuple[list[Ints], tuple[int, ...]]]:
    """For each choice of a source number per dimension, the indices that have such a source, in a fixed order."""
    for columns in itertools.product(*(range(d.source.shape[1]) for d in dims)):
        rows = [np.flatnonzero(d.source[:, k] >= 0) for d, k in zip(dims, columns, strict=True)]
        if all(len(x) for x in rows):
            yield rows, columns

"""One step of a plan on one box: gather, scale, and draw what is new.

The value of an element never depends on the box in which it is asked for: factors are applied in one order (layer,
then dimension by dimension), sums run over the sources in their order, and random numbers have addresses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import torch

from growth import philox
from growth.architecture import LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.maps import Ints
from growth.recipe import DimMap, Recipe, Source

Read = Callable[[str, str, Box], torch.Tensor]
_FEW_REGIONS, _LARGE_REGION = 16, 1 << 14  # regions to copy one by one; else indices are gathered
_WORK = 1 << 22  # elements summed at a time
_MAX_ORDERED = 8  # more linear combinations than this are one matrix product in float64


def init(tensor: LogicalTensor, box: Box, seed: int, init_std: float, layers: int) -> torch.Tensor:
    """The fresh init of a box, float32: what a model without a parent has there."""
    how = tensor.spec.init
    if how in ("one", "zero"):
        return torch.full(box.shape, 1.0 if how == "one" else 0.0)
    std = init_std / (2 * layers) ** 0.5 if how == "branch" else init_std
    return philox.normal(seed, tensor.name, tensor.shape, box).mul_(std)


def evaluate(
    r: Recipe,
    kind: str,
    read: Read,
    *,
    seed: int,
    init_std: float,
    layers: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The value of the recipe's box; fresh elements are drawn in float32 and cast to `dtype`. It is written into `out`
    (of that dtype) where that saves a copy, so look at what is returned."""
    if r.all_zero:
        return torch.zeros(r.box.shape, dtype=dtype) if out is None else out.zero_()
    if r.fresh:
        return init(r.tensor, r.box, seed, init_std, layers).to(dtype)

    def fresh(region: Box) -> torch.Tensor | float:
        if kind != "weight":
            return 0.0
        moved = Box(
            tuple(a + o for a, o in zip(region.start, r.box.start, strict=True)),
            tuple(b + o for b, o in zip(region.stop, r.box.start, strict=True)),
        )
        return init(r.tensor, moved, seed, init_std, layers)

    olds = [_with_mixes(_read(read, kind, s).to(dtype), r.dims) for s in r.sources]
    if len(r.sources) > 1 or any(d.source.shape[1] > 1 for d in r.dims):
        value = _by_terms(r, olds, fresh, dtype)
    else:
        regions = prod(len(d.runs) for d in r.dims)
        by_runs = regions <= _FEW_REGIONS or r.box.numel >= regions * _LARGE_REGION
        value = _by_runs(r, olds, fresh, dtype, out) if by_runs else _by_gather(r, olds, fresh, dtype)
    return _with_noise(r, value, seed) if kind == "weight" else value


def _read(read: Read, kind: str, source: Source) -> torch.Tensor:
    old = read(kind, source.name, source.box)
    if tuple(old.shape) != source.box.shape:
        raise GrowthError(f"{source.name}: asked for {source.box} but was given the shape {tuple(old.shape)}")
    return old


def _with_mixes(old: torch.Tensor, dims: tuple[DimMap, ...]) -> torch.Tensor:
    """The old tensor with the linear combinations that are asked for appended to its dimensions."""
    for d, m in enumerate(dims):
        if m.mixes is None or m.source.max() < m.whole:
            continue
        rows = old.movedim(d, 0).unflatten(0, (m.mixes.shape[1], -1)).double()
        if len(m.mixes) > _MAX_ORDERED:  # the order of summation is the library's: equal to 1e-12 in any box
            mixed = torch.einsum("mo,o...->m...", torch.from_numpy(m.mixes), rows)
        else:
            mixed = torch.stack([_weighted_sum(rows, weights) for weights in m.mixes])
        old = torch.cat((old, mixed.to(old.dtype).flatten(0, 1).movedim(0, d)), dim=d)
    return old


def _weighted_sum(rows: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """sum_i weights[i] * rows[i] as a tree of additions of halves: the same sum in any box."""
    used = np.flatnonzero(weights)
    w = torch.from_numpy(weights[used])[:, None]
    flat = rows.flatten(1)
    parts = []
    for columns in flat.split(max(1, _WORK // max(len(used), 1)), dim=1):
        terms = columns[torch.from_numpy(used)] * w
        while len(terms) > 1:
            half = len(terms) // 2
            odd = terms[2 * half :]
            terms = torch.cat((terms[:half] + terms[half : 2 * half], odd))
        parts.append(terms[0])
    return torch.cat(parts).view(rows.shape[1:])


def _with_noise(r: Recipe, out: torch.Tensor, seed: int) -> torch.Tensor:
    """Relative noise: of copied layers, and of the readers of copied channels, where it sums to nothing."""
    if r.noise:
        z = philox.normal(seed, f"{r.tensor.name}#layer", r.tensor.shape, r.box)
        out = out * z.to(out.dtype).mul_(r.noise).add_(1.0)
    for d, m in enumerate(r.dims):
        if m.copies is None:
            continue
        members = m.copies.index[m.copies.index >= 0]
        start, stop = list(r.box.start), list(r.box.stop)
        start[d], stop[d] = int(members.min()), int(members.max()) + 1
        z = philox.normal(seed, f"{r.tensor.name}#{d}", r.tensor.shape, Box(tuple(start), tuple(stop))).to(out.dtype)
        noise = z.narrow(d, r.box.start[d] - start[d], r.box.shape[d]).clone()
        for column, share in zip(m.copies.index.T, m.copies.share.T, strict=True):
            term = _pick(z, d, np.where(column >= 0, column - start[d], 0))
            noise -= term * _along(share, d, out)
        alone = (m.copies.index >= 0).sum(axis=1) < 2
        if alone.any():
            noise.index_fill_(d, torch.from_numpy(np.flatnonzero(alone)), 0.0)
        out = out * noise.mul_(m.copies.noise).add_(1.0)
    return out


def _pick(value: torch.Tensor, d: int, index: Ints) -> torch.Tensor:
    """value.index_select(d, index); a view where the indices are consecutive."""
    first = int(index[0])
    if len(index) == 1 or bool((index[1:] - index[:-1] == 1).all()):
        return value.narrow(d, first, len(index))
    return value.index_select(d, torch.from_numpy(index))


def _along(values: np.ndarray, d: int, like: torch.Tensor) -> torch.Tensor:
    """A vector as a factor along dimension d."""
    return (
        torch.from_numpy(np.ascontiguousarray(values))
        .to(like.dtype)
        .view([-1 if i == d else 1 for i in range(like.dim())])
    )


Fresh = Callable[[Box], "torch.Tensor | float"]


def _by_runs(
    r: Recipe, olds: list[torch.Tensor], fresh: Fresh, dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    """Contiguous runs of sources: one copy or one scaled copy for each region."""
    runs = [d.runs for d in r.dims]
    same = all(len(x) == 1 and x[0][3] == 1.0 for x in runs)
    if same and olds and olds[0].shape == r.box.shape and r.sources[0].factor == 1.0:
        return olds[0]
    out = torch.empty(r.box.shape, dtype=dtype) if out is None else out
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


def _by_gather(r: Recipe, olds: list[torch.Tensor], fresh: Fresh, dtype: torch.dtype) -> torch.Tensor:
    """One source each, gathered index by index; then what has none."""
    if olds:
        out = olds[0]
        for d, m in enumerate(r.dims):
            out = _pick(out, d, np.maximum(m.source[:, 0] - r.sources[0].box.start[d], 0))
        out = _scale(out, r.sources[0].factor, [m.factor[:, 0] for m in r.dims])
        out = out.clone() if out._base is not None or out is olds[0] else out
    else:
        out = torch.empty(r.box.shape, dtype=dtype)
    _fill(r, out, fresh)
    return out


def _scale(value: torch.Tensor, factor: float, factors: list[np.ndarray]) -> torch.Tensor:
    """Times the factor of the layer, then those of each dimension."""
    if factor != 1.0:
        value = value * factor
    for d, f in enumerate(factors):
        if (f != 1.0).any():
            value = value * _along(f, d, value)
    return value


def _fill(r: Recipe, out: torch.Tensor, fresh: Fresh) -> None:
    """Write what has no source: fresh elements, then zeros, which win."""
    for d, m in enumerate(r.dims):
        index = np.flatnonzero((m.source[:, 0] < 0) & ~m.zero)
        if not len(index):
            continue
        span = Box.whole(r.box.shape)
        a, b = int(index[0]), int(index[-1]) + 1
        span = Box((*span.start[:d], a, *span.start[d + 1 :]), (*span.stop[:d], b, *span.stop[d + 1 :]))
        value = fresh(span)
        if isinstance(value, torch.Tensor):
            out.index_copy_(d, torch.from_numpy(index), _pick(value.to(out.dtype), d, index - a))
        else:
            out.index_fill_(d, torch.from_numpy(index), value)
    for d, m in enumerate(r.dims):
        if m.zero.any():
            out.index_fill_(d, torch.from_numpy(np.flatnonzero(m.zero)), 0.0)


def _by_terms(r: Recipe, olds: list[torch.Tensor], fresh: Fresh, dtype: torch.dtype) -> torch.Tensor:
    """Sums: over layers, then over the sources of each dimension, each term gathered and scaled."""
    out = torch.zeros(r.box.shape, dtype=dtype)
    for source, old in zip(r.sources, olds, strict=True):
        for rows, columns in _terms(r.dims):
            term = old
            for d, (index, k) in enumerate(zip(rows, columns, strict=True)):
                term = _pick(term, d, r.dims[d].source[index, k] - source.box.start[d])
            factors = [m.factor[index, k] for m, index, k in zip(r.dims, rows, columns, strict=True)]
            term = _scale(term, source.factor, factors)
            first = source is r.sources[0] and not any(columns)
            if all(len(index) == n for index, n in zip(rows, r.box.shape, strict=True)):
                out = term.clone() if first else out.add_(term)
            else:
                where = np.ix_(*rows)
                out[where] = term if first else out[where] + term
    _fill(r, out, fresh)
    return out


def _terms(dims: tuple[DimMap, ...]) -> Iterator[tuple[list[Ints], tuple[int, ...]]]:
    """For each choice of a source number per dimension, the indices that have such a source, in a fixed order."""
    for columns in itertools.product(*(range(d.source.shape[1]) for d in dims)):
        rows = [np.flatnonzero(d.source[:, k] >= 0) for d, k in zip(dims, columns, strict=True)]
        if all(len(x) for x in rows):
            yield rows, columns

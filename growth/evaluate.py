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
_MAX_REGIONS = 2048  # more runs than this are gathered index by index
_MAX_ORDERED = 8  # more linear combinations than this are one matrix product in float64


def init(tensor: LogicalTensor, box: Box, seed: int, init_std: float, layers: int) -> torch.Tensor:
    """The fresh init of a box, float32: what a model without a parent has there."""
    how = tensor.spec.init
    if how in ("one", "zero"):
        return torch.full(box.shape, 1.0 if how == "one" else 0.0)
    std = init_std / (2 * layers) ** 0.5 if how == "branch" else init_std
    return philox.normal(seed, tensor.name, tensor.shape, box).mul_(std)


def evaluate(
    r: Recipe, kind: str, read: Read, *, seed: int, init_std: float, layers: int, dtype: torch.dtype
) -> torch.Tensor:
    """The value of the recipe's box; fresh elements are drawn in float32 and cast to `dtype`."""
    if r.all_zero:
        return torch.zeros(r.box.shape, dtype=dtype)
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
    single = len(r.sources) <= 1 and all(d.source.shape[1] == 1 for d in r.dims)
    runs = [d.runs() for d in r.dims] if single else []
    if single and prod(map(len, runs)) <= _MAX_REGIONS:
        out = _by_runs(r, runs, olds, fresh, dtype)
    else:
        out = _by_index(r, olds, fresh, dtype)
    return _with_noise(r, out, seed) if kind == "weight" else out


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
            mixed = torch.zeros(len(m.mixes), *rows.shape[1:], dtype=torch.float64)
            for row, weights in enumerate(m.mixes):
                for i in np.flatnonzero(weights).tolist():  # one by one: the same sum in any box
                    mixed[row] += rows[i] * float(weights[i])  # two roundings: a fused one depends on strides
        old = torch.cat((old, mixed.to(old.dtype).flatten(0, 1).movedim(0, d)), dim=d)
    return old


def _with_noise(r: Recipe, out: torch.Tensor, seed: int) -> torch.Tensor:
    """Relative noise: of copied layers, and of the readers of copied channels, where it sums to nothing."""
    noises = []
    if r.noise:
        noises.append(r.noise * philox.normal(seed, f"{r.tensor.name}#layer", r.tensor.shape, r.box).double())
    for d, m in enumerate(r.dims):
        if m.copies is None:
            continue
        members = m.copies.index[m.copies.index >= 0]
        start, stop = list(r.box.start), list(r.box.stop)
        start[d], stop[d] = int(members.min()), int(members.max()) + 1
        z = philox.normal(seed, f"{r.tensor.name}#{d}", r.tensor.shape, Box(tuple(start), tuple(stop))).double()
        shape = [-1 if i == d else 1 for i in range(z.dim())]
        mean = torch.zeros(r.box.shape, dtype=torch.float64)
        for column, share in zip(m.copies.index.T, m.copies.share.T, strict=True):
            drawn = z.index_select(d, torch.from_numpy(np.maximum(column - start[d], 0)))
            mean += drawn * torch.from_numpy(share).reshape(shape)
        own = z.narrow(d, r.box.start[d] - start[d], r.box.shape[d])
        single = torch.from_numpy((m.copies.index >= 0).sum(axis=1) < 2).reshape(shape)
        noises.append(m.copies.noise * (own - mean).masked_fill(single, 0.0))
    for noise in noises:
        out = (out * (1.0 + noise)).to(out.dtype)
    return out


Fresh = Callable[[Box], "torch.Tensor | float"]


def _by_runs(
    r: Recipe,
    runs: list[list[tuple[int, int, int, float, bool]]],
    olds: list[torch.Tensor],
    fresh: Fresh,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Contiguous runs of sources: one copy or one scaled copy for each region."""
    same = all(len(x) == 1 and x[0][3] == 1.0 for x in runs)
    if same and olds and olds[0].shape == r.box.shape and r.sources[0].factor == 1.0:
        return olds[0]
    out = torch.empty(r.box.shape, dtype=dtype)
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


def _by_index(r: Recipe, olds: list[torch.Tensor], fresh: Fresh, dtype: torch.dtype) -> torch.Tensor:
    """Any sources: gathered index by index and summed over layers, then over the sources of each dimension."""
    out = torch.zeros(r.box.shape, dtype=dtype)
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

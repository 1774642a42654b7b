"""One step of a plan on one box: gather, scale, and draw what is new.

The value of an element never depends on the box in which it is asked for: factors are applied in one order (layer,
then dimension by dimension), sums run over the sources in their order, and random numbers have addresses. What takes
more than one pass is done a chunk at a time, which stays in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from growth.architecture import LogicalTensor
from growth.box import Box
from growth.evaluate.dimension import Copies
from growth.evaluate.gather import chunks, gather
from growth.evaluate.index_runs import How, Index, IndexRun
from growth.evaluate.recipe import Recipe
from growth.evaluate.sources import MixCache, OldRegions
from growth.evaluate.sources import Read as Read
from growth.maps import Ints
from growth.random import philox


@dataclass(frozen=True)
class FreshInit:
    """What fresh elements are drawn with: `std` is that of normal ones; in a residual branch it is divided by the
    square root of `branches`, the number of residual branches of the new model. `factors`, by the name of a row of the
    family's table, multiply what that row starts with."""

    seed: int
    std: float
    branches: int
    factors: Mapping[str, float] = field(default_factory=dict)


def init(tensor: LogicalTensor, box: Box, fresh: FreshInit, out: torch.Tensor | None = None) -> torch.Tensor:
    """The fresh init of a box, float32, in `out` if it is given: what a model without a parent has there."""
    out = torch.empty(box.shape) if out is None else out
    how, factor = tensor.spec.init, fresh.factors.get(tensor.spec.name, 1.0)
    if how in ("one", "zero"):
        return out.fill_(factor if how == "one" else 0.0)
    std = fresh.std / fresh.branches**0.5 if how == "branch" else fresh.std
    return philox.normal(fresh.seed, tensor.name, tensor.shape, box, std=std * factor, out=out)


def evaluate(
    r: Recipe,
    kind: str,
    read: Read,
    fresh: FreshInit,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
    cache: MixCache | None = None,
) -> torch.Tensor:
    """The value of the recipe's box, in `out` (of that dtype) if it is given; else it may be what `read` returned.
    Fresh elements are drawn in float32 and cast to `dtype`. `cache` serves the boxes of one plan and one `read`."""
    if r.how == How.SUM:
        return _assemble(r, kind, OldRegions(r, kind, read, dtype, cache), fresh, dtype, out)
    out = torch.empty(r.box.shape, dtype=dtype) if out is None else out
    if r.how == How.ZERO:
        return out.zero_()
    _draw(out, [slice(0, n) for n in r.box.shape], r, fresh)
    return out


def _assemble(
    r: Recipe, kind: str, olds: OldRegions, fresh: FreshInit, dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    """A box whose dimensions say what it is made of: region by region, then its noise."""
    runs = [m.runs(r.box.numel // n) for m, n in zip(r.dims, r.box.shape, strict=True)]
    noisy = kind == "weight" and (r.noise > 0 or any(m.copies for m in r.dims))
    if out is None:
        unchanged = None if noisy else _unchanged(r, runs, olds)
        if unchanged is not None:
            return unchanged
        out = torch.empty(r.box.shape, dtype=dtype)
    for region in itertools.product(*runs):
        _fill(out, region, r, kind, olds, fresh)
    if noisy:
        _add_noise(r, out, fresh.seed)
    return out


def _fill(
    out: torch.Tensor, region: Sequence[IndexRun], r: Recipe, kind: str, olds: OldRegions, fresh: FreshInit
) -> None:
    """The elements of `out` at one run of each dimension. Where a moment has nothing old in it, it is zero."""
    places = [run.place for run in region]
    is_view = all(isinstance(place, slice) for place in places)
    target = out[tuple(places)] if is_view else torch.empty([run.size for run in region], dtype=out.dtype)
    how = min(run.how for run in region)
    if how == How.ZERO or (how == How.FRESH and kind != "weight"):
        target.zero_()
    elif how == How.FRESH:
        _draw(target, places, r, fresh)
    else:
        gather(target, r, region, olds)
    if not is_view:
        out[np.ix_(*(np.arange(n)[p] for p, n in zip(places, r.box.shape, strict=True)))] = target


def _unchanged(r: Recipe, runs: list[list[IndexRun]], olds: OldRegions) -> torch.Tensor | None:
    """The old region itself, where the box is that and nothing else."""
    if len(r.sources) != 1 or r.sources[0].factor != 1.0:
        return None
    for along in runs:
        run = along[0]
        if len(along) > 1 or run.how != How.SUM or len(run.terms) != 1 or not run.terms[0].is_copy:
            return None
    old = olds.joined(0)
    return old if old.shape == r.box.shape else None


def _draw(target: torch.Tensor, places: Sequence[Index], r: Recipe, fresh: FreshInit) -> None:
    """A region of fresh elements; `places` says where it is in the box."""
    if r.tensor.spec.init in ("one", "zero"):
        init(r.tensor, r.box, fresh, target)
        return
    index = [np.arange(n)[p] for p, n in zip(places, r.box.shape, strict=True)]
    whole = all(int(i[-1]) - int(i[0]) == len(i) - 1 for i in index)
    for a, b in chunks(target):
        rows = [index[0][a:b], *index[1:]]
        start = tuple(int(i[0]) + o for i, o in zip(rows, r.box.start, strict=True))
        stop = tuple(int(i[-1]) + 1 + o for i, o in zip(rows, r.box.start, strict=True))
        if whole and target.dtype == torch.float32 and target.stride(-1) == 1:
            init(r.tensor, Box(start, stop), fresh, target[a:b])
            continue
        value = init(r.tensor, Box(start, stop), fresh)
        for d, i in enumerate(rows):
            value = _pick(value, d, i - i[0])
        target[a:b].copy_(value)


def _pick(value: torch.Tensor, d: int, index: Ints) -> torch.Tensor:
    """value.index_select(d, index), of ascending indices that begin at 0."""
    if len(index) == value.shape[d]:
        return value
    return value.index_select(d, torch.from_numpy(index))


class _Noise:
    """The random numbers of one box, chunk after chunk in the same memory."""

    def __init__(self, r: Recipe, seed: int) -> None:
        self._tensor, self._seed, self._memory = r.tensor, seed, torch.empty(0)

    def normal(self, kind: str, box: Box) -> torch.Tensor:
        if len(self._memory) < box.numel:
            self._memory = torch.empty(box.numel)
        out = self._memory[: box.numel].view(box.shape)
        return philox.normal(self._seed, f"{self._tensor.name}#{kind}", self._tensor.shape, box, out=out)


def _add_noise(r: Recipe, out: torch.Tensor, seed: int) -> None:
    """Relative noise, in place: of copied layers, and of the readers of copied channels, where it sums to nothing."""
    noise = _Noise(r, seed)
    if r.noise:
        for a, b in chunks(out):
            box = r.box.with_dim(0, r.box.start[0] + a, r.box.start[0] + b)
            out[a:b].mul_(noise.normal("layer", box).to(out.dtype).mul_(r.noise).add_(1.0))
    for d, m in enumerate(r.dims):
        if m.copies is not None and m.copies.several:
            _add_null(r, out, noise, d, m.copies)


def _add_null(r: Recipe, out: torch.Tensor, noise: _Noise, d: int, copies: Copies) -> None:
    """Noise along dimension d of which the shares of the copies of each index are taken away."""
    from growth.evaluate.copy_noise import Null  # It brings numba, which is not imported before it is needed.

    low, high = copies.span
    null = Null(copies, r.box.start[d] - low, out.dtype)
    other = 1 if d == 0 and out.dim() > 1 else 0
    for a, b in chunks(out, other) if other != d else [(0, len(out))]:
        box = r.box.with_dim(other, r.box.start[other] + a, r.box.start[other] + b).with_dim(d, low, high)
        z = noise.normal(str(d), box).to(out.dtype)
        null.multiply(out.narrow(other, a, b - a).movedim(d, -1), z.movedim(d, -1))

"""One step of a plan on one box: gather, scale, and draw what is new.

The value of an element never depends on the box in which it is asked for: factors are applied in one order (layer,
then dimension by dimension), sums run over the sources in their order, and random numbers have addresses. What takes
more than one pass is done a chunk at a time, which stays in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from growth.architecture import LogicalTensor
from growth.box import Box
from growth.evaluate.index_runs import Index, IndexRun, Term
from growth.evaluate.recipe import Copies, Recipe
from growth.evaluate.sources import Kept, Olds
from growth.evaluate.sources import Read as Read
from growth.maps import Ints
from growth.random import philox

Fresh = Callable[[Box, torch.Tensor | None], torch.Tensor]
_CHUNK = 1 << 17  # elements


def init(
    tensor: LogicalTensor, box: Box, seed: int, init_std: float, branches: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The fresh init of a box, float32, in `out` if it is given: what a model without a parent has there that has so
    many residual branches."""
    out = torch.empty(box.shape) if out is None else out
    how = tensor.spec.init
    if how in ("one", "zero"):
        return out.fill_(1.0 if how == "one" else 0.0)
    std = init_std / branches**0.5 if how == "branch" else init_std
    return philox.normal(seed, tensor.name, tensor.shape, box, std=std, out=out)


def evaluate(
    r: Recipe,
    kind: str,
    read: Read,
    *,
    seed: int,
    init_std: float,
    branches: int,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
    kept: Kept | None = None,
) -> torch.Tensor:
    """The value of the recipe's box, in `out` (of that dtype) if it is given; else it may be what `read` returned.
    Fresh elements are drawn in float32 and cast to `dtype`. `kept` serves the boxes of one plan and one `read`."""
    if r.all_zero:
        return torch.zeros(r.box.shape, dtype=dtype) if out is None else out.zero_()

    def fresh(box: Box, out: torch.Tensor | None) -> torch.Tensor:
        return init(r.tensor, box, seed, init_std, branches, out)

    if r.fresh:
        out = torch.empty(r.box.shape, dtype=dtype) if out is None else out
        _draw(out, [slice(0, n) for n in r.box.shape], r, fresh)
        return out
    olds = Olds(r, kind, read, dtype, kept)
    runs = [d.runs(r.box.numel // n) for d, n in zip(r.dims, r.box.shape, strict=True)]
    noisy = kind == "weight" and (r.noise > 0 or any(d.copies for d in r.dims))
    if out is None:
        same = None if noisy else _unchanged(r, runs, olds)
        if same is not None:
            return same
        out = torch.empty(r.box.shape, dtype=dtype)
    for region in itertools.product(*runs):
        places = [s.place for s in region]
        view = all(isinstance(p, slice) for p in places)
        target = out[tuple(places)] if view else torch.empty([s.size for s in region], dtype=dtype)
        if any(s.zero for s in region):
            target.zero_()
        elif all(s.terms for s in region):
            _sum(target, r, region, olds)
        elif kind != "weight":
            target.zero_()
        else:
            _draw(target, places, r, fresh)
        if not view:
            out[np.ix_(*(np.arange(n)[p] for p, n in zip(places, r.box.shape, strict=True)))] = target
    if noisy:
        _add_noise(r, out, seed)
    return out


def _unchanged(r: Recipe, runs: list[list[IndexRun]], olds: Olds) -> torch.Tensor | None:
    """The old region itself, where the box is that and nothing else."""
    if len(r.sources) != 1 or r.sources[0].factor != 1.0:
        return None
    for found in runs:
        terms = found[0].terms
        if len(found) > 1 or len(terms) != 1 or terms[0].mixed or not isinstance(terms[0].factor, float):
            return None
        if terms[0].factor != 1.0 or not isinstance(terms[0].source, slice) or terms[0].source.step != 1:
            return None
    old = olds.direct(0)
    return old if old.shape == r.box.shape else None


def _sum(target: torch.Tensor, r: Recipe, region: Sequence[IndexRun], olds: Olds) -> None:
    """A region with sources: over layers, then over the sources of each dimension, each term gathered and scaled."""
    if _sums_of_rows(r, region, target):
        _sum_rows(target, r, region, olds)
        return
    first = True
    for n, source in enumerate(r.sources):
        for terms in itertools.product(*(s.terms for s in region)):
            mixed = frozenset(d for d, t in enumerate(terms) if t.mixed)
            index = [_moved(t.source, -olds.first_mix(d)) if t.mixed else t.source for d, t in enumerate(terms)]
            _term(target, olds.table(n, mixed), index, source.factor, terms, first)
            first = False


def _sums_of_rows(r: Recipe, region: Sequence[IndexRun], target: torch.Tensor) -> bool:
    """Whether a region is sums of rows of old matrices, each times one number."""
    if len(region) != 2 or len(r.sources) * len(region[0].terms) < 2 or len(region[1].terms) > 1:
        return False
    (columns,) = region[1].terms
    straight = isinstance(columns.source, slice) and columns.source.step == 1 and np.all(columns.factor == 1.0)
    if not straight or target.stride(1) != 1 or any(t.mixed for s in region for t in s.terms):
        return False
    return all(s.factor == 1.0 for s in r.sources) or all(np.all(t.factor == 1.0) for t in region[0].terms)


def _sum_rows(target: torch.Tensor, r: Recipe, region: Sequence[IndexRun], olds: Olds) -> None:
    """Term by term and part by part of what was read; all terms at once where that is one part."""
    from growth.evaluate.row_sums import add_rows  # brings numba: not before it is needed

    rows, columns = region[0], region[1].terms[0].source
    for n, source in enumerate(r.sources):
        index = np.stack([np.broadcast_to(_indices(t.source), rows.size) for t in rows.terms], axis=1)
        factor = np.stack([np.broadcast_to(source.factor * t.factor, rows.size) for t in rows.terms], axis=1)
        parts = olds.parts(n)
        if len(parts) == 1:
            add_rows(target, np.arange(rows.size), parts[0][:, columns], index, factor, first=n == 0)
            continue
        edges = np.cumsum([0, *map(len, parts)])
        for k in range(len(rows.terms)):
            for part, a, b in zip(parts, edges[:-1], edges[1:], strict=True):
                to = np.flatnonzero((a <= index[:, k]) & (index[:, k] < b))
                here = slice(k, k + 1)
                add_rows(target, to, part[:, columns], index[to, here] - a, factor[to, here], first=n == k == 0)


def _indices(index: Index) -> Ints:
    return np.arange(index.start, index.stop, index.step) if isinstance(index, slice) else index


def _moved(index: Index, by: int) -> Index:
    return slice(index.start + by, index.stop + by, index.step) if isinstance(index, slice) else index + by


def _term(
    target: torch.Tensor, old: torch.Tensor, index: list[Index], factor: float, terms: Sequence[Term], first: bool
) -> None:
    """target = (if `first`) or += gathered elements of `old`, times the factor of the layer, then of each dimension."""
    view = old[tuple(i if isinstance(i, slice) else slice(None) for i in index)]
    gathers = {d: torch.from_numpy(i) for d, i in enumerate(index) if not isinstance(i, slice)}
    factors: list[float | torch.Tensor] = [factor] if factor != 1.0 else []
    rows_of = [-1] * len(factors)  # which factors go along the first dimension
    for d, t in enumerate(terms):
        if isinstance(t.factor, np.ndarray):
            factors.append(_along(t.factor, d, target))
            rows_of.append(d)
        elif t.factor != 1.0:
            factors.append(t.factor)
            rows_of.append(-1)
    if first and not gathers and len(factors) < 2:
        if factors:
            torch.mul(view.expand(target.shape), factors[0], out=target)
        else:
            target.copy_(view)
        return
    rows_alone = list(gathers) == [0] and view.shape[1:] == target.shape[1:]
    if first and not factors and rows_alone and target.is_contiguous():
        torch.index_select(view, 0, gathers[0], out=target)
        return
    for a, b in _chunks(target):
        part = target[a:b]
        value = view if view.shape[0] == 1 or 0 in gathers else view[a:b]
        for d, i in gathers.items():
            value = value.index_select(0, i[a:b]) if d == 0 else value.contiguous().index_select(d, i)
        value = value.expand(part.shape)
        here = [f[a:b] if d == 0 and isinstance(f, torch.Tensor) else f for f, d in zip(factors, rows_of, strict=True)]
        if first and here:
            torch.mul(value, here[0], out=part)
            for f in here[1:]:
                part.mul_(f)
        elif first:
            part.copy_(value)
        else:
            for f in here:
                value = value * f
            part.add_(value)


def _along(values: np.ndarray, d: int, like: torch.Tensor) -> torch.Tensor:
    """A vector as a factor along dimension d."""
    shape = [-1 if i == d else 1 for i in range(like.dim())]
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).view(shape)


def _chunks(value: torch.Tensor, d: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges along dimension d of about `_CHUNK` elements."""
    size = value.shape[d]
    step = max(1, _CHUNK * size // max(1, value.numel()))
    for a in range(0, size, step):
        yield a, min(a + step, size)


def _draw(target: torch.Tensor, places: Sequence[Index], r: Recipe, fresh: Fresh) -> None:
    """A region of fresh elements; `places` says where it is in the box."""
    if r.tensor.spec.init in ("one", "zero"):
        target.fill_(1.0 if r.tensor.spec.init == "one" else 0.0)
        return
    index = [np.arange(n)[p] for p, n in zip(places, r.box.shape, strict=True)]
    whole = all(int(i[-1]) - int(i[0]) == len(i) - 1 for i in index)
    for a, b in _chunks(target):
        rows = [index[0][a:b], *index[1:]]
        start = tuple(int(i[0]) + o for i, o in zip(rows, r.box.start, strict=True))
        stop = tuple(int(i[-1]) + 1 + o for i, o in zip(rows, r.box.start, strict=True))
        if whole and target.dtype == torch.float32 and target.stride(-1) == 1:
            fresh(Box(start, stop), target[a:b])
            continue
        value = fresh(Box(start, stop), None)
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
        for a, b in _chunks(out):
            box = Box((r.box.start[0] + a, *r.box.start[1:]), (r.box.start[0] + b, *r.box.stop[1:]))
            out[a:b].mul_(noise.normal("layer", box).to(out.dtype).mul_(r.noise).add_(1.0))
    for d, m in enumerate(r.dims):
        if m.copies is not None and m.copies.several:
            _add_null(r, out, noise, d, m.copies)


def _add_null(r: Recipe, out: torch.Tensor, noise: _Noise, d: int, copies: Copies) -> None:
    """Noise along dimension d of which the shares of the copies of each index are taken away."""
    from growth.evaluate.copy_noise import Null  # brings numba: not before it is needed

    low, high = copies.span
    null = Null(copies, r.box.start[d] - low, out.dtype)
    other = 1 if d == 0 and out.dim() > 1 else 0
    for a, b in _chunks(out, other) if other != d else [(0, len(out))]:
        start, stop = list(r.box.start), list(r.box.stop)
        start[other], stop[other] = r.box.start[other] + a, r.box.start[other] + b
        start[d], stop[d] = low, high
        z = noise.normal(str(d), Box(tuple(start), tuple(stop))).to(out.dtype)
        null.multiply(out.narrow(other, a, b - a).movedim(d, -1), z.movedim(d, -1))

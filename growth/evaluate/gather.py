"""A region of a box that is made of old elements: gathered, scaled and summed.

What takes more than one pass is done a chunk at a time, which stays in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from growth.evaluate.index_runs import How, Index, IndexRun, Term
from growth.evaluate.recipe import Recipe
from growth.evaluate.sources import OldRegions
from growth.maps import Ints

_CHUNK = 1 << 17  # So many elements are worked on at a time: they stay in the cache.

Factor = float | torch.Tensor
"""What a chunk is multiplied by: one number, or a vector along one dimension, with 1 for the size of the others."""


def gather(target: torch.Tensor, r: Recipe, region: Sequence[IndexRun], olds: OldRegions) -> None:
    """target = the region of these runs, each a SUM or a MIX: the sum over old layers, then over the terms of each
    dimension."""
    if _is_sum_of_rows(r, region, target):
        _sum_rows(target, r, region, olds)
        return
    mixed = frozenset(d for d, run in enumerate(region) if run.how == How.MIX)
    first = True
    for n, source in enumerate(r.sources):
        old = olds.combined(n, mixed)
        for terms in itertools.product(*(run.terms for run in region)):
            index = [olds.index(term.source, d, d in mixed) for d, term in enumerate(terms)]
            _add_term(target, old, index, _factors(source.factor, terms, target), first)
            first = False


def chunks(value: torch.Tensor, d: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges along dimension d of about `_CHUNK` elements."""
    size = value.shape[d]
    step = max(1, _CHUNK * size // max(1, value.numel()))
    for start in range(0, size, step):
        yield start, min(start + step, size)


def _is_sum_of_rows(r: Recipe, region: Sequence[IndexRun], target: torch.Tensor) -> bool:
    """Whether a region is sums of rows of old matrices, each times one number."""
    if len(region) != 2 or any(run.how == How.MIX for run in region):
        return False
    rows, columns = (run.terms for run in region)
    if len(r.sources) * len(rows) < 2 or len(columns) > 1 or not columns[0].is_copy or target.stride(1) != 1:
        return False
    return all(s.factor == 1.0 for s in r.sources) or all(np.all(term.factor == 1.0) for term in rows)


def _sum_rows(target: torch.Tensor, r: Recipe, region: Sequence[IndexRun], olds: OldRegions) -> None:
    """Term by term and part by part of what was read; all terms at once where that is one part."""
    from growth.evaluate.row_sums import add_rows  # It brings numba, which is not imported before it is needed.

    size, terms, columns = region[0].size, region[0].terms, region[1].terms[0].source
    for n, source in enumerate(r.sources):
        index = np.stack([np.broadcast_to(_numbers(t.source), size) for t in terms], axis=1)
        factor = np.stack([np.broadcast_to(source.factor * t.factor, size) for t in terms], axis=1)
        parts = olds.parts(n)
        if len(parts) == 1:
            add_rows(target, np.arange(size), parts[0][:, columns], index, factor, first=n == 0)
            continue
        edges = np.cumsum([0, *map(len, parts)])
        for k in range(len(terms)):
            for part, start, stop in zip(parts, edges[:-1], edges[1:], strict=True):
                to = np.flatnonzero((start <= index[:, k]) & (index[:, k] < stop))
                column = slice(k, k + 1)
                rows = index[to, column] - start
                add_rows(target, to, part[:, columns], rows, factor[to, column], first=n == k == 0)


def _numbers(index: Index) -> Ints:
    return np.arange(index.start, index.stop, index.step) if isinstance(index, slice) else index


def _factors(layer: float, terms: Sequence[Term], target: torch.Tensor) -> list[Factor]:
    """The factors that are not one: of the old layer, then of each dimension."""
    factors: list[Factor] = [layer] if layer != 1.0 else []
    for d, term in enumerate(terms):
        if isinstance(term.factor, np.ndarray):
            shape = [-1 if i == d else 1 for i in range(target.dim())]
            factors.append(torch.from_numpy(np.ascontiguousarray(term.factor)).to(target.dtype).view(shape))
        elif term.factor != 1.0:
            factors.append(term.factor)
    return factors


def _add_term(target: torch.Tensor, old: torch.Tensor, index: list[Index], factors: list[Factor], first: bool) -> None:
    """target = (if `first`) or += the elements of `old` at `index`, times the factors one after the other."""
    view = old[tuple(i if isinstance(i, slice) else slice(None) for i in index)]
    gathers = {d: torch.from_numpy(i) for d, i in enumerate(index) if not isinstance(i, slice)}
    if first and not gathers and len(factors) < 2:
        if factors:
            torch.mul(view.expand(target.shape), factors[0], out=target)
        else:
            target.copy_(view)
        return
    only_rows = list(gathers) == [0] and view.shape[1:] == target.shape[1:]
    if first and not factors and only_rows and target.is_contiguous():
        torch.index_select(view, 0, gathers[0], out=target)
        return
    for start, stop in chunks(target):
        value = view if view.shape[0] == 1 or 0 in gathers else view[start:stop]
        for d, i in gathers.items():
            value = value.index_select(0, i[start:stop]) if d == 0 else value.contiguous().index_select(d, i)
        _scale(target[start:stop], value, [_rows(factor, start, stop) for factor in factors], first)


def _rows(factor: Factor, start: int, stop: int) -> Factor:
    """The part of a factor that belongs to these rows."""
    return factor[start:stop] if isinstance(factor, torch.Tensor) and factor.shape[0] > 1 else factor


def _scale(part: torch.Tensor, value: torch.Tensor, factors: list[Factor], first: bool) -> None:
    """part = (if `first`) or += the value, spread to the part's shape, times the factors one after the other."""
    value = value.expand(part.shape)
    if not first:
        for factor in factors:
            value = value * factor
        part.add_(value)
    elif factors:
        torch.mul(value, factors[0], out=part)
        for factor in factors[1:]:
            part.mul_(factor)
    else:
        part.copy_(value)

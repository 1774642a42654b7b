"""What a box is made of: the old regions that it reads, and the linear combinations of old indices that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.dimension import DimMap, Spans
from growth.evaluate.index_runs import Index
from growth.evaluate.recipe import Recipe, Source, boxes_of

Read = Callable[[str, str, Box], torch.Tensor]
MixCache = dict[Any, Any]
"""Linear combinations that every box of a tensor needs (the mean of all rows, say), for the next box to find."""

_GRID = 256  # Where all old indices are summed, so many are read at a time.
_FEW = 8  # So many linear combinations are summed in the order of the old indices; more are matrix products in float64.


class OldRegions:
    """The old regions of one recipe; each is read when it is first asked for."""

    def __init__(self, recipe: Recipe, kind: str, read: Read, dtype: torch.dtype, cache: MixCache | None) -> None:
        self._recipe, self._kind, self._read, self._dtype = recipe, kind, read, dtype
        self._cache = cache
        self._parts: dict[int, list[torch.Tensor]] = {}
        self._joined: dict[int, torch.Tensor] = {}

    def parts(self, n: int) -> list[torch.Tensor]:
        """The old tensor of source n at each of the spans of the recipe's first dimension."""
        if n not in self._parts:
            self._parts[n] = [self._region(self._recipe.sources[n], box) for box in self._recipe.boxes]
        return self._parts[n]

    def joined(self, n: int) -> torch.Tensor:
        """The old tensor of source n at the spans of the recipe, one after the other."""
        if n not in self._joined:
            self._joined[n] = _join(self.parts(n))
        return self._joined[n]

    def combined(self, n: int, mixed: frozenset[int]) -> torch.Tensor:
        """The same, but along the dimensions `mixed` the linear combinations of all old indices. They are all there if
        they are few, else those that the box needs; `index` says where."""
        if not mixed:
            return self.joined(n)
        dims = self._recipe.dims
        spans = tuple(() if d in mixed else m.spans for d, m in enumerate(dims))
        key = (self._recipe.sources[n].name, self._kind, spans, tuple(sorted(mixed)), self._dtype)
        # Many linear combinations would take the memory of a whole tensor.
        cache = self._cache if all(_few(dims[d]) for d in mixed) else None
        if cache is None:
            return self._combined(n, mixed, spans)
        if key not in cache:
            cache[key] = self._combined(n, mixed, spans)
        return cast(torch.Tensor, cache[key])

    def index(self, source: Index, d: int, mixed: bool) -> Index:
        """Where the old indices or linear combinations `source` of dimension d are in the table of `combined`."""
        m = self._recipe.dims[d]
        if not mixed or _few(m):
            return source
        first = m.rows[0] * m.rest
        if isinstance(source, slice):
            return slice(source.start - first, source.stop - first, source.step)
        return source - first

    def _region(self, source: Source, box: Box) -> torch.Tensor:
        old = self._read(self._kind, source.name, box)
        if tuple(old.shape) != box.shape:
            raise GrowthError(f"{source.name}: asked for {box} but was given the shape {tuple(old.shape)}")
        return old.to(self._dtype)

    def _at(self, n: int, spans: tuple[Spans, ...]) -> torch.Tensor:
        """A region of source n: cut out of what was read already, where it lies within that."""
        boxes = boxes_of(spans)
        if len(self._recipe.boxes) == len(boxes) == 1:
            already = self._recipe.boxes[0]
            if already.intersect(boxes[0]) == boxes[0]:
                return self.joined(n)[boxes[0].relative_to(already).slices()]
        return _join([self._region(self._recipe.sources[n], box) for box in boxes])

    def _combined(self, n: int, mixed: frozenset[int], spans: tuple[Spans, ...]) -> torch.Tensor:
        """Sums over the first axis of the last of the mixed dimensions, of a fixed grid of its indices at a time: the
        memory that this takes does not grow with the axis, nor does the order of the sum depend on the box."""
        if not mixed:
            return self._at(n, spans)
        from growth.evaluate.row_sums import add_weighted  # It brings numba, which is not imported before it is needed.

        d = max(mixed)
        m = self._recipe.dims[d]
        assert m.mixes is not None
        weights = m.mixes if _few(m) else m.mixes[slice(*m.rows)]
        total: torch.Tensor | None = None
        for start in range(0, m.mixes.shape[1], _GRID):
            stop = min(start + _GRID, m.mixes.shape[1])
            span = (start * m.rest, stop * m.rest)
            old = self._combined(n, mixed - {d}, (*spans[:d], (span,), *spans[d + 1 :]))
            rows = old.movedim(d, 0).unflatten(0, (stop - start, m.rest))
            part = weights[:, start:stop]
            if total is None:
                total = torch.zeros(len(weights), *rows.shape[1:], dtype=torch.float64)
            if _few(m):
                add_weighted(total.view(len(weights), -1), rows.reshape(stop - start, -1), part)
            else:  # The order of summation is the library's, so that boxes agree to 1e-12 only.
                matrix = torch.from_numpy(np.ascontiguousarray(part))
                total.add_(torch.einsum("mo,o...->m...", matrix, rows.double()))
        assert total is not None
        return total.to(self._dtype).flatten(0, 1).movedim(0, d)


def _few(m: DimMap) -> bool:
    """Whether all linear combinations of a dimension are made at once, each summed in the order of its old indices."""
    return m.mixes is not None and len(m.mixes) <= _FEW


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)

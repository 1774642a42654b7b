"""What a box is made of: the old regions that it reads, and the linear combinations of old indices that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.recipe import Recipe, Source, Spans, boxes_of

Read = Callable[[str, str, Box], torch.Tensor]
Kept = dict[Any, Any]
"""Linear combinations that every box of a tensor needs (the mean of all rows, say), for the next box to find."""

_GRID = 256  # old indices that are read at a time where all of them are summed
_MAX_ORDERED = 8  # more linear combinations than this are matrix products in float64


class Olds:
    """The old regions of one recipe; each is read when it is first asked for."""

    def __init__(self, recipe: Recipe, kind: str, read: Read, dtype: torch.dtype, kept: Kept | None) -> None:
        self.recipe, self.kind, self.dtype = recipe, kind, dtype
        self._read = read
        self._kept = kept
        self._direct: dict[int, torch.Tensor] = {}
        self._parts: dict[int, list[torch.Tensor]] = {}

    def table(self, n: int, mixed: frozenset[int]) -> torch.Tensor:
        """The old tensor of source n at the spans of the recipe; along the dimensions `mixed` instead its linear
        combinations, from `first_mix` on."""
        if not mixed:
            return self.direct(n)
        spans = tuple(() if d in mixed else m.spans for d, m in enumerate(self.recipe.dims))
        few = all(self._ordered(d) for d in mixed)
        key = (self.recipe.sources[n].name, self.kind, spans, tuple(sorted(mixed)), self.dtype)
        if self._kept is not None and few and key in self._kept:
            return cast(torch.Tensor, self._kept[key])
        found = self._mixed(n, mixed, spans)
        if self._kept is not None and few:
            self._kept[key] = found
        return found

    def first_mix(self, d: int) -> int:
        """The first of the linear combinations that a table has along dimension d."""
        m = self.recipe.dims[d]
        assert m.mixes is not None
        rest = m.whole // m.mixes.shape[1]
        return 0 if self._ordered(d) else int(m.mix[m.mix >= 0].min()) // rest * rest

    def parts(self, n: int) -> list[torch.Tensor]:
        """The old tensor of source n at each of the spans of the recipe's first dimension."""
        if n not in self._parts:
            self._parts[n] = [self._region(self.recipe.sources[n], box) for box in self.recipe.boxes]
        return self._parts[n]

    def direct(self, n: int) -> torch.Tensor:
        """The old tensor of source n at the spans of the recipe."""
        if n not in self._direct:
            parts = self.parts(n)
            self._direct[n] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._direct[n]

    def _ordered(self, d: int) -> bool:
        mixes = self.recipe.dims[d].mixes
        return mixes is not None and len(mixes) <= _MAX_ORDERED

    def _region(self, source: Source, box: Box) -> torch.Tensor:
        old = self._read(self.kind, source.name, box)
        if tuple(old.shape) != box.shape:
            raise GrowthError(f"{source.name}: asked for {box} but was given the shape {tuple(old.shape)}")
        return old.to(self.dtype)

    def _at(self, n: int, spans: tuple[Spans, ...]) -> torch.Tensor:
        """A region of source n: cut out of what was read already, where it lies within that."""
        boxes = boxes_of(spans)
        if len(self.recipe.boxes) == len(boxes) == 1:
            have = self.recipe.boxes[0]
            if have.intersect(boxes[0]) == boxes[0]:
                return self.direct(n)[boxes[0].relative_to(have).slices()]
        parts = [self._region(self.recipe.sources[n], box) for box in boxes]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _mixed(self, n: int, mixed: frozenset[int], spans: tuple[Spans, ...]) -> torch.Tensor:
        """Sums over the first axis of the last of the mixed dimensions, of a fixed grid of its indices at a time: the
        memory that this takes does not grow with the axis, nor does the order of the sum depend on the box."""
        if not mixed:
            return self._at(n, spans)
        from growth.evaluate.row_sums import add_weighted  # brings numba: not before it is needed

        d = max(mixed)
        m = self.recipe.dims[d]
        assert m.mixes is not None
        size = m.mixes.shape[1]
        rest = m.whole // size
        used = m.mix[m.mix >= 0]
        weights = m.mixes if self._ordered(d) else m.mixes[used.min() // rest : used.max() // rest + 1]
        total: torch.Tensor | None = None
        for a in range(0, size, _GRID):
            b = min(a + _GRID, size)
            here = self._mixed(n, mixed - {d}, (*spans[:d], ((a * rest, b * rest),), *spans[d + 1 :]))
            rows = here.movedim(d, 0).unflatten(0, (b - a, rest))
            part = weights[:, a:b]
            if total is None:
                total = torch.zeros(len(weights), *rows.shape[1:], dtype=torch.float64)
            if self._ordered(d):
                add_weighted(total.view(len(weights), -1), rows.reshape(b - a, -1), part)
            else:  # the order of summation is the library's: equal to 1e-12 in any box
                matrix = torch.from_numpy(np.ascontiguousarray(part))
                total.add_(torch.einsum("mo,o...->m...", matrix, rows.double()))
        assert total is not None
        return total.to(self.dtype).flatten(0, 1).movedim(0, d)

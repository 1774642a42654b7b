"""Boxes: half-open axis-aligned regions of a tensor, the unit in which everything is read, grown and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """The region `start[d] <= index[d] < stop[d]` of a tensor, for every dimension d."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        """The box that covers a tensor of this shape."""
        return Box((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """What both boxes cover, or None when that is empty."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def relative_to(self, origin: Box) -> Box:
        """The same region in coordinates that begin at the start of `origin`."""
        return Box(
            tuple(a - o for a, o in zip(self.start, origin.start, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin.start, strict=True)),
        )

    def slices(self) -> tuple[slice, ...]:
        """The region as an index of a tensor."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

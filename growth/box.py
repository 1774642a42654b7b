"""Boxes: half-open axis-aligned regions of a tensor, the unit in which everything is read, grown and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    @staticmethod
    def of_flat_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
        """The elements `start <= flat index < stop` of a row-major tensor of this shape, as boxes in that order.

        There are at most 2 * len(shape) - 1 of them, and each is contiguous in the tensor. In a matrix these are the
        rest of a row that was begun, whole rows, and the beginning of a last row.
        """
        if start >= stop:
            return []
        if not shape:
            return [Box((), ())]
        inner = prod(shape[1:])
        boxes: list[Box] = []
        row, end = start // inner, stop // inner
        if start % inner:
            first = Box.of_flat_range(shape[1:], start - row * inner, min(stop - row * inner, inner))
            boxes += [Box((row, *b.start), (row + 1, *b.stop)) for b in first]
            row += 1
        if row < end:
            boxes.append(Box((row, *(0 for _ in shape[1:])), (end, *shape[1:])))
        if row <= end and stop % inner:
            last = Box.of_flat_range(shape[1:], 0, stop - end * inner)
            boxes += [Box((end, *b.start), (end + 1, *b.stop)) for b in last]
        return boxes

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
        return self.moved([-o for o in origin.start])

    def moved(self, by: Sequence[int]) -> Box:
        """The region that lies `by` indices further along each dimension."""
        return Box(
            tuple(a + o for a, o in zip(self.start, by, strict=True)),
            tuple(b + o for b, o in zip(self.stop, by, strict=True)),
        )

    def with_dim(self, d: int, start: int, stop: int) -> Box:
        """The same region but for dimension d, along which it goes from `start` to `stop`."""
        return Box((*self.start[:d], start, *self.start[d + 1 :]), (*self.stop[:d], stop, *self.stop[d + 1 :]))

    def flat_range(self, shape: Sequence[int]) -> tuple[int, int]:
        """The flat indices, in a row-major tensor of this shape, of the first element and behind the last one; the box
        must not be empty."""
        first = last = 0
        for size, a, b in zip(shape, self.start, self.stop, strict=True):
            first = first * size + a
            last = last * size + b - 1
        return first, last + 1

    def parts(self, max_bytes: int) -> Iterator[Box]:
        """The region in row-major order, cut into parts of at most `max_bytes` in fp32."""
        if 4 * self.numel <= max_bytes:
            yield self
            return
        d = next(d for d, size in enumerate(self.shape) if size > 1)
        rows = max(1, max_bytes // (4 * prod(self.shape[d + 1 :])))
        for i in range(self.start[d], self.stop[d], rows):
            yield from self.with_dim(d, i, min(i + rows, self.stop[d])).parts(max_bytes)

    def slices(self) -> tuple[slice, ...]:
        """The region as an index of a tensor."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

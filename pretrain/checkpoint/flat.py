"""Boxes of a row-major tensor against flat ranges of its elements, and cut small."""

from collections.abc import Iterator, Sequence
from math import prod

from growth.box import Box


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The elements `start <= flat index < stop` of a tensor of this shape, as boxes in row-major order.

    There are at most 2 * len(shape) - 1 of them, and each is contiguous in the tensor.
    """
    if start >= stop:
        return []
    if not shape:
        return [Box((), ())]
    inner = prod(shape[1:])
    boxes: list[Box] = []
    row, end = start // inner, stop // inner
    if start % inner:
        first = flat_boxes(shape[1:], start - row * inner, min(stop - row * inner, inner))
        boxes += [Box((row, *b.start), (row + 1, *b.stop)) for b in first]
        row += 1
    if row < end:
        boxes.append(Box((row, *(0 for _ in shape[1:])), (end, *shape[1:])))
    if row <= end and stop % inner:
        last = flat_boxes(shape[1:], 0, stop - end * inner)
        boxes += [Box((end, *b.start), (end + 1, *b.stop)) for b in last]
    return boxes


def flat_range(shape: Sequence[int], box: Box) -> tuple[int, int]:
    """The flat range from the first to behind the last element of a box that is not empty."""
    first = last = 0
    for size, a, b in zip(shape, box.start, box.stop, strict=True):
        first = first * size + a
        last = last * size + b - 1
    return first, last + 1


def pieces(box: Box, max_bytes: int) -> Iterator[Box]:
    """The box in row-major order, cut into fp32 parts of at most `max_bytes`."""
    if 4 * box.numel <= max_bytes:
        yield box
        return
    dim = next(d for d, size in enumerate(box.shape) if size > 1)
    rows = max(1, max_bytes // (4 * prod(box.shape[dim + 1 :])))
    for i in range(box.start[dim], box.stop[dim], rows):
        start, stop = list(box.start), list(box.stop)
        start[dim], stop[dim] = i, min(i + rows, box.stop[dim])
        yield from pieces(Box(tuple(start), tuple(stop)), max_bytes)

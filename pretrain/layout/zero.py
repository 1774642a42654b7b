"""ZeRO's partitions: which flat range of which parameter a data-parallel rank owns, and as which boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from growth.box import Box
from pretrain.layout.cuts import Parameter

ALIGNMENT = 2  # DeepSpeed pads a flattened group to a multiple of this times the data-parallel size


@dataclass(frozen=True)
class Fragment:
    """The flat elements [start, start + numel) of a parameter, at `offset` in a rank's partition."""

    index: int
    start: int
    numel: int
    offset: int


def fragments(parameters: Sequence[Parameter], dp: int, dp_rank: int) -> list[Fragment]:
    """What one data-parallel rank owns: parameters flattened in order, padded, cut into equal partitions.

    For planning and for tests: the engine asks DeepSpeed which range a rank owns.

    Raises nothing; the order and padding are those of DeepSpeed 0.19's ZeRO-1 and BF16 optimizers for one group.
    """
    total = sum(prod(p.shape) for p in parameters)
    unit = ALIGNMENT * dp
    size = (total + unit - 1) // unit * unit // dp
    begin, end = dp_rank * size, (dp_rank + 1) * size
    parts, at = [], 0
    for index, parameter in enumerate(parameters):
        n = prod(parameter.shape)
        a, b = max(at, begin), min(at + n, end)
        if a < b:
            parts.append(Fragment(index, a - at, b - a, a - begin))
        at += n
    return parts


@dataclass(frozen=True)
class FragmentBox:
    """A box of a logical tensor inside a flat fragment: rows of `box.shape[-1]` elements, `stride` apart."""

    tensor: str
    box: Box
    offset: int
    stride: int

    def view(self, fragment: torch.Tensor) -> torch.Tensor:
        """The elements of a flat fragment (contiguous, 1-d) that this box names, with the box's shape, not copied."""
        strides = (self.stride, 1)[-len(self.box.shape) :]
        return fragment.as_strided(self.box.shape, strides, fragment.storage_offset() + self.offset)


def fragment_boxes(parameter: Parameter, start: int, numel: int) -> list[FragmentBox]:
    """The logical boxes of the flat range [start, start + numel) of a local parameter; padding is left out."""
    columns = prod(parameter.shape[1:])
    boxes = []
    for span in Box.of_flat_range(parameter.shape, start, start + numel):
        for piece in parameter.pieces:
            if (here := span.intersect(piece.local)) is None:
                continue
            box = here.relative_to(piece.local).moved(piece.box.start)
            first, _ = here.flat_range(parameter.shape)
            boxes.append(FragmentBox(piece.tensor, box, first - start, columns))
    return boxes

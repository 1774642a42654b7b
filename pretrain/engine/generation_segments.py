"""Which generation is where in a ZeRO partition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The generations of rows of equal length: row i has those of `patterns[index[i]]`.

    patterns: int64 [distinct rows, columns]; index: int64 [rows]. A byte for every element would be more, and slower
    to look up: an element's generation is the later of its row's and its column's, so few rows differ.
    """

    patterns: Tensor
    index: Tensor


@dataclass(frozen=True)
class Segment:
    """The elements [start, stop) of a partition that share weight decay.

    present: the generations among them; rows: which element has which, None when there is only one. rate and eps
    multiply the learning rate of each generation and Adam's epsilon; weight decay is not multiplied by rate.
    """

    start: int
    stop: int
    decay: bool
    present: tuple[int, ...]
    rows: Rows | None = None
    rate: float = 1.0
    eps: float = 1.0


def segments(
    start: int,
    ids: Tensor,
    columns: int,
    into: int,
    decay: bool,
    device: torch.device,
    rate: float = 1.0,
    eps: float = 1.0,
) -> Iterator[Segment]:
    """Describe a flat range of a parameter that lies at `start` in the partition.

    ids: uint8 [elements], the generation of each. columns: the length of the parameter's rows; into: how many elements
    of its first row are not in the range (a partition may begin and end inside a row). rate, eps: see Segment.
    """
    present = tuple(ids.unique().tolist())
    if len(present) < 2:
        if present:
            yield Segment(start, start + len(ids), decay, present, None, rate, eps)
        return
    head = min(-into % columns, len(ids))
    full = (len(ids) - head) // columns * columns
    for a, b, width in ((0, head, head), (head, head + full, columns), (head + full, len(ids), len(ids) - head - full)):
        if a < b:
            part = ids[a:b]
            present = tuple(part.unique().tolist())
            rows = _rows(part.view(-1, width), device) if len(present) > 1 else None
            yield Segment(start + a, start + b, decay, present, rows, rate, eps)


def _rows(ids: Tensor, device: torch.device) -> Rows:
    """Neighbours are mostly alike: only the first of each run of equal rows is compared with all others."""
    begins = torch.cat([torch.ones(1, dtype=torch.bool), (ids[1:] != ids[:-1]).any(1)])
    patterns, index = torch.unique(ids[begins], dim=0, return_inverse=True)
    return Rows(patterns.long().to(device), index[begins.long().cumsum(0) - 1].to(device))

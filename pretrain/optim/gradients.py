"""Gradients of a ZeRO group in one flat buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Partition(list[Tensor]):
    """A rank's part of the reduced gradients: per parameter for the norm, and flat for the optimizer."""

    flat_partition: Tensor


class FlatGradients:
    """One buffer in the order of ZeRO's flat weights, of which every parameter's `.grad` is a view.

    Backward passes accumulate into it, it is reduced where it lies, and the optimizer takes its partition as it is:
    nothing is flattened or copied. parameters and offsets describe all of `numel` elements but the padding.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], offsets: Sequence[int], numel: int) -> None:
        first = parameters[0]
        self._parameters, self._offsets = parameters, offsets
        self._flat = torch.zeros(numel, dtype=first.dtype, device=first.device)
        self.clear()

    def clear(self) -> None:
        """Zero every gradient, and put it back where somebody has dropped it."""
        self._flat.zero_()
        for parameter, offset in zip(self._parameters, self._offsets, strict=True):
            parameter.grad = self._flat[offset : offset + parameter.numel()].view_as(parameter)

    def reduce(self, group: dist.ProcessGroup) -> Partition:
        """The mean over the data-parallel ranks; every rank gets its equal part of the buffer (collective)."""
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        if world > 1:
            self._flat.div_(world)
            dist.all_reduce(self._flat, group=group)
        size = len(self._flat) // world
        first, last = rank * size, (rank + 1) * size
        ends = [offset + p.numel() for p, offset in zip(self._parameters, self._offsets, strict=True)]
        spans = [(max(a, first), min(b, last)) for a, b in zip(self._offsets, ends, strict=True)]
        partition = Partition(self._flat[a:b] for a, b in spans if a < b)
        partition.flat_partition = self._flat[first:last]
        return partition

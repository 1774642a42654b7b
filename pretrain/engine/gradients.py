"""Gradients of a ZeRO group in one flat buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.guard.recheck import checksum


class FlatGradients:
    """One fp32 buffer in the order of ZeRO's flat weights: backward passes accumulate into it, it is reduced where it
    lies, and the optimizer takes its partition as it is. Nothing is flattened or copied.

    Of fp32 parameters it is their `.grad`. Of others, every `.grad` is added to it, in one kernel, as soon as a
    backward pass has made it, and dropped. parameters and offsets describe all of `numel` elements but the padding;
    group: the data-parallel ranks, each of which owns an equal part of the buffer.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], offsets: Sequence[int], numel: int, group: dist.ProcessGroup
    ) -> None:
        self._group = group
        self._flat = torch.zeros(numel, dtype=torch.float32, device=parameters[0].device)
        size = numel // dist.get_world_size(group)
        self.partition = self._flat[dist.get_rank(group) * size :][:size]
        self._views: dict[torch.nn.Parameter, Tensor] = {}
        for parameter, offset in zip(parameters, offsets, strict=True):
            view = self._flat[offset : offset + parameter.numel()].view_as(parameter)
            self._views[parameter] = view
            if parameter.dtype == torch.float32:
                parameter.grad = view
            else:
                parameter.register_post_accumulate_grad_hook(partial(_accumulate, view))

    def __getitem__(self, parameter: torch.nn.Parameter) -> Tensor:
        """The accumulated gradient of a parameter, of its shape; zeros where there is none."""
        return self._views[parameter]

    def reduce(self) -> Tensor:
        """This rank's partition of the sum over the data-parallel ranks (collective)."""
        if dist.get_world_size(self._group) > 1:
            dist.reduce_scatter_tensor(self.partition, self._flat, group=self._group)
        return self.partition

    def checksum(self) -> Tensor:
        """Of the bits of all that has been accumulated: see pretrain.guard.recheck."""
        return checksum(self._flat)

    def clear(self) -> None:
        """Zero every gradient."""
        self._flat.zero_()


def _accumulate(view: Tensor, parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    view.add_(parameter.grad)
    parameter.grad = None


def sum_of_squares(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Of all elements, float64, on the device, without waiting for it."""
    if not parts:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm(list(parts), 2, dtype=torch.float64)  # torch's own get_total_norm takes no dtype
    return torch.stack(norms).square().sum()


def reduce_together(gradients: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sum small tensors over the ranks of a group, in place, in one collective."""
    if gradients:
        flat = torch.cat([x.flatten() for x in gradients])
        dist.all_reduce(flat, group=group)
        summed = flat.split([x.numel() for x in gradients])
        torch._foreach_copy_(list(gradients), [x.view_as(g) for x, g in zip(summed, gradients, strict=True)])

"""A teacher's distribution over the next word as labels (Hinton et al. 2015, section 2), over a vocabulary that
tensor-parallel ranks share.

Shapes: T tokens, V local ids.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SoftLabels(torch.autograd.Function):
    """apply(student [T, V], teacher [T, V], weight [T], real, temperature, group): the sum over tokens, by weight, and
    over this rank's ids, of temperature^2 KL(teacher || student), of logits divided by the temperature, in nats.

    real: how many of the ids are pieces of the vocabulary; the rest are padding. The sum over the ranks of the group
    (None: there is one) is the divergence; the gradient by this rank's logits is that of the whole. Collective.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor,
        real: int,
        temperature: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        logs, target = (_log_softmax(x, real, temperature, group) for x in (student, teacher))
        expected = target.exp()
        total = target.sub_(logs).mul_(expected).sum(-1).mul_(weight).sum() * temperature**2
        ctx.save_for_backward(logs.exp_().sub_(expected).mul_(weight[:, None] * temperature).to(student.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (of_student,) = ctx.saved_tensors
        return of_student * grad, *(None,) * 5


def _log_softmax(logits: Tensor, real: int, temperature: float, group: dist.ProcessGroup | None) -> Tensor:
    """Over the ids of all ranks, fp32, or fp64 where the logits are; padding is the lowest number there is."""
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x = logits.to(wide, copy=True).div_(temperature)
    x[:, real:] = torch.finfo(x.dtype).min
    largest = x.amax(-1, keepdim=True)
    if group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    x -= largest
    total = x.exp().sum(-1, keepdim=True)
    if group is not None:
        dist.all_reduce(total, group=group)
    return x.sub_(total.log_()).clamp_(min=torch.finfo(x.dtype).min)

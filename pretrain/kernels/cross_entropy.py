"""Cross entropy of a vocabulary that tensor-parallel ranks share, without fp32 logits of all of it.

Shapes: T tokens, V local ids. Each rank reduces its logits to a maximum, a sum of exponentials and the label's logit of
each token, and these are combined (as Megatron-LM does it; Shoeybi et al. 2019, section 3). The backward pass computes
the exponentials again and writes the gradient where the logits are. What is not compiled goes through the tokens in
chunks, each of which has temporaries in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.kernels.fused import Kernel, kernel

CHUNK = 1 << 24  # logits of which there are fp32 temporaries at a time

Run = Callable[..., Any]
"""Runs a kernel on tensors whose first dimension is tokens."""


def whole(kernel: Kernel, *tensors: Tensor) -> Any:
    """As one pass, which has no temporaries."""
    return kernel(*tensors)


def in_chunks(kernel: Kernel, *tensors: Tensor) -> Any:
    """Operation by operation; the first tensor is the logits."""
    tokens = max(1, CHUNK // tensors[0].shape[1])
    parts = [kernel.eager(*part) for part in zip(*(x.split(tokens) for x in tensors), strict=True)]
    return None if parts[0] is None else tuple(map(torch.cat, zip(*parts, strict=True)))


class CrossEntropy(torch.autograd.Function):
    """apply(logits [T, V], labels [T], group, run) is the negative log-likelihood of each label, fp32 [T] (collective
    over the tensor-parallel group). The gradient takes the place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: dist.ProcessGroup, run: Run) -> Tensor:
        label = (labels - dist.get_rank(group) * logits.shape[1])[:, None]
        largest, total, picked = run(statistics, logits, label)
        if dist.get_world_size(group) > 1:
            own = largest.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
            both = combined(own, largest, total, picked, label, logits.shape[1])
            dist.all_reduce(both, group=group)
            total, picked = both.unbind()
        ctx.save_for_backward(logits, label, largest, total)
        ctx.run = run
        return (total.log() - picked).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, label, largest, total = ctx.saved_tensors
        ctx.run(gradient, logits.detach(), label, largest, total, grad[:, None])
        return logits, None, None, None


@kernel()
def statistics(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(maximum, sum of exponentials relative to it, the label's logit relative to it), fp32 [T, 1].

    label: [T, 1], an index into the logits; where it is none of them, the last is 0.
    """
    x = logits.float()
    largest = x.amax(-1, keepdim=True)
    x = x - largest
    picked = x.gather(1, label.clamp(0, x.shape[1] - 1))
    return largest, x.exp().sum(-1, keepdim=True), picked.masked_fill((label < 0) | (label >= x.shape[1]), 0.0)


def combined(own: Tensor, largest: Tensor, total: Tensor, picked: Tensor, label: Tensor, local: int) -> Tensor:
    """[2, T, 1]: this rank's sum of exponentials and label's logit, relative to the maximum of all ranks."""
    off = own - largest
    return torch.stack((total * off.exp(), picked + off.masked_fill((label < 0) | (label >= local), 0.0)))


@kernel(writes=(0,))
def gradient(logits: Tensor, label: Tensor, largest: Tensor, total: Tensor, grad: Tensor) -> None:
    """Write the gradient over the logits: (softmax - 1 at the label) * grad, [T, 1]."""
    at_label = torch.arange(logits.shape[1], device=logits.device) == label
    logits.copy_(((logits.float() - largest).exp() / total - at_label.float()) * grad)

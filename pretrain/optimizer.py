"""AdamW for ZeRO partitions that holds parameters of several generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BLOCK = 1 << 15  # elements updated at a time: their weights, gradients, moments and temporaries fit a core's cache


@dataclass(frozen=True)
class Segment:
    """The elements [start, stop) of a partition that share weight decay.

    generation is one id, or a uint8 tensor with an id per element.
    """

    start: int
    stop: int
    decay: bool
    generation: int | Tensor


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on one flat partition.

    Weight decay is per segment; every generation keeps its own step, so that the bias correction of what was born at
    a growth event starts at its birth. With one generation and decay everywhere an update equals that of
    torch.optim.AdamW(fused=True) bit for bit.

    State of the partition: exp_avg and exp_avg_sq, like it. `steps` holds the number of updates of each generation.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.segments: Sequence[Segment] = ()
        self.steps: list[int] = []

    def describe(self, segments: Sequence[Segment], steps: Sequence[int]) -> None:
        """Say what the partition holds, and how many updates each generation has had."""
        self.segments = segments
        self.steps = list(steps)

    def moments(self, partition: Tensor) -> tuple[Tensor, Tensor]:
        """(exp_avg, exp_avg_sq) of a partition, made of zeros when there are none yet."""
        state = self.state[partition]
        if not state:
            state["exp_avg"] = torch.zeros_like(partition)
            state["exp_avg_sq"] = torch.zeros_like(partition)
        return state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every generation."""
        (group,) = self.param_groups
        (partition,) = group["params"]
        if partition.grad is None:
            return
        tensors = (partition.detach(), partition.grad, *self.moments(partition))
        self.steps = [n + 1 for n in self.steps]
        for decay in (True, False):
            mine = [s for s in self.segments if s.decay == decay]
            self._update_whole([s for s in mine if isinstance(s.generation, int)], tensors, group, decay)
            self._update_mixed([s for s in mine if not isinstance(s.generation, int)], tensors, group, decay)

    def _update_whole(
        self, segments: Sequence[Segment], tensors: tuple[Tensor, ...], group: dict[str, Any], decay: bool
    ) -> None:
        """Segments of one generation each: torch's fused kernel, one pass over memory."""
        params, grads, exp_avgs, exp_avg_sqs = ([x[s.start : s.stop] for s in segments] for x in tensors)
        done = torch.tensor([float(self.steps[int(s.generation)] - 1) for s in segments], device=tensors[0].device)
        beta1, beta2 = group["betas"]
        adamw(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            max_exp_avg_sqs=[],
            state_steps=list(done.unbind()),
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"] if decay else 0.0,
            eps=group["eps"],
        )

    def _update_mixed(
        self, segments: Sequence[Segment], tensors: tuple[Tensor, ...], group: dict[str, Any], decay: bool
    ) -> None:
        """Segments with a generation per element, in blocks; equal to the others up to rounding."""
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        minus_step_size_G = tensors[0].new_tensor([-lr / (1 - beta1**n) for n in self.steps])
        scale_G = tensors[0].new_tensor([(1 - beta2**n) ** -0.5 for n in self.steps])
        block = BLOCK if tensors[0].device.type == "cpu" else tensors[0].numel()
        for segment in segments:
            assert isinstance(segment.generation, Tensor)
            for start in range(segment.start, segment.stop, block):
                at = slice(start, min(start + block, segment.stop))
                p, g, m, v = (x[at] for x in tensors)
                ids = segment.generation[at.start - segment.start : at.stop - segment.start].int()
                if decay:
                    p.mul_(1 - lr * group["weight_decay"])
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                denominator = v.sqrt().mul_(scale_G.index_select(0, ids)).add_(eps)
                p.addcdiv_(minus_step_size_G.index_select(0, ids).mul_(m), denominator)

"""AdamW for ZeRO partitions that holds parameters of several generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 16  # elements updated at a time: their weights, gradients and moments fit a core's cache


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
    a growth event starts at its birth. With one generation and decay everywhere an update equals torch.optim.AdamW's
    bit for bit.

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
        exp_avg, exp_avg_sq = self.moments(partition)
        self.steps = [n + 1 for n in self.steps]
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        step_size = [lr / (1 - beta1**n) for n in self.steps]
        scale = [(1 - beta2**n) ** 0.5 for n in self.steps]
        minus_step_size_G = torch.tensor([-x for x in step_size], dtype=partition.dtype, device=partition.device)
        scale_G = torch.tensor(scale, dtype=partition.dtype, device=partition.device)
        block = BLOCK if partition.device.type == "cpu" else partition.numel()
        for segment in self.segments:
            for start in range(segment.start, segment.stop, block):
                at = slice(start, min(start + block, segment.stop))
                p, g, m, v = partition[at], partition.grad[at], exp_avg[at], exp_avg_sq[at]
                if segment.decay:
                    p.mul_(1 - lr * group["weight_decay"])
                m.lerp_(g, 1 - beta1)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
                if isinstance(segment.generation, int):
                    denominator = (v.sqrt() / scale[segment.generation]).add_(eps)
                    p.addcdiv_(m, denominator, value=-step_size[segment.generation])
                else:
                    ids = segment.generation[at.start - segment.start : at.stop - segment.start].int()
                    denominator = (v.sqrt() / scale_G[ids]).add_(eps)
                    p.addcdiv_(m * minus_step_size_G[ids], denominator)

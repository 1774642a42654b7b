"""What the ranks tell each other in a step: in one collective, and then in one copy from the device to the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.guard.recheck import Unlike

WISHES = 2
"""The largest wish that a rank can have; 0 is none. See pretrain.guard.switches."""

Veto = Callable[[float, float], str]
"""Of a loss and a gradient norm, why there must be no update; empty when there may. The same on every rank."""


@dataclass(frozen=True)
class StepResult:
    """loss is the sum of its terms by their weights, each a mean over the global batch, in nats; grad_norm is before
    clipping (inf where it is not finite). trouble: why no update was made, empty when one was. wish: the largest of all
    ranks'. writing: how many ranks were still writing a checkpoint. unlike: ranks whose gradient came out differently
    when it was computed again; then there is no loss and no norm (nan)."""

    loss: float
    grad_norm: float
    terms: Mapping[str, float]
    trouble: str = ""
    wish: int = 0
    writing: int = 0
    unlike: tuple[Unlike, ...] = ()


def exchange(terms: Tensor, square: Tensor, wish: int, writing: bool) -> tuple[list[float], float, int, int]:
    """The sums over all ranks of the terms and of the square, the largest wish and how many ranks are writing a
    checkpoint, on the host (collective).

    terms [n] and square [], float64 on the device, are this rank's parts; wish, from 0 to WISHES, is its own. An
    all-reduce makes each sum in one place, so that every rank gets the same bits, and all decide alike. This is the one
    place in a step where the host waits for the device.
    """
    # Of each wish, and of those that write, a digit: as many as there are ranks do not reach the next one. A whole
    # number, exact for 200,000 ranks.
    base = dist.get_world_size() + 1
    digits = (base ** (wish - 1) if wish else 0) + writing * base**WISHES
    shared = torch.zeros(len(terms) + 2, dtype=torch.float64, device=terms.device)
    shared[: len(terms)] = terms
    shared[len(terms)] = square
    if digits:
        shared[-1].fill_(digits)  # not a copy, which would wait
    if dist.get_world_size() > 1:
        dist.all_reduce(shared)
    *sums, total, last = shared.cpu().tolist()
    still_writing, wishes = divmod(int(last), base**WISHES)
    return sums, total, next((w for w in range(WISHES, 0, -1) if wishes >= base ** (w - 1)), 0), still_writing

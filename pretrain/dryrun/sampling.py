"""The arithmetic of a growth event on the host, done for one box of each kind of tensor.

The boxes of a rank of a 7B model would take minutes, and all but the first of a kind show nothing new: the others are
zeros. All copies to the device and all reads of what is on it are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from growth import Box, Plan
from growth.certificate import Certificate, count_dead
from pretrain.dryrun.device import nothing, put
from pretrain.event import certify

COUNTED = 1 << 20
"""Elements up to which dead parameters are counted."""


def install() -> None:
    """For the rest of this process."""
    done: set[Any] = set()
    put(
        Plan,
        evaluate=_evaluate(Plan.evaluate, done),
        new_mask=_new_mask(Plan.new_mask, done),
    )
    put(
        certify,
        count_dead=lambda born, *rest: count_dead(born, *rest) if born.numel() <= COUNTED else (0, born.numel()),
    )
    # Figures of values that are not there.
    put(certify, relative_error=lambda *_: 0.0, _loss=lambda *_: 1.0)
    put(Certificate, require=nothing)


def _evaluate(evaluate: Callable[..., Tensor], done: set[Any]) -> Callable[..., Tensor]:
    def sampled(
        plan: Plan,
        name: str,
        box: Box,
        read: Any,
        kind: str = "weight",
        dtype: torch.dtype = torch.float32,
        out: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        key = (plan.operators, plan.new.tensor(name).spec.name, kind)
        if key not in done or (out is not None and out.device.type != "cpu"):
            done.add(key)
            return evaluate(plan, name, box, read, kind, dtype, out, cache)
        return torch.zeros(box.shape, dtype=dtype) if out is None else out

    return sampled


def _new_mask(new_mask: Callable[..., Tensor], done: set[Any]) -> Callable[..., Tensor]:
    def sampled(plan: Plan, name: str, box: Box) -> Tensor:
        key = ("mask", plan.operators, plan.new.tensor(name).spec.name)
        if key not in done:
            done.add(key)
            return new_mask(plan, name, box)
        return torch.ones((), dtype=torch.bool).expand(box.shape)

    return sampled

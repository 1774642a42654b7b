"""Whether a stored model is the one that a plan makes of its parent: every element, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from growth.box import Box
from growth.evaluate import Read
from growth.plan import Plan

_BLOCK = 1 << 22  # elements compared at a time


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one tensor is from what the plan makes: max |stored - planned| / max |planned| over the tensor
    (infinite where zeros are planned), and the index of the largest difference."""

    kind: str
    tensor: str
    error: float
    index: tuple[int, ...]


def differences(
    plan: Plan,
    read: Read,
    stored: Read,
    kinds: Sequence[str] = ("weight", "exp_avg", "exp_avg_sq"),
    progress: Callable[[str], None] = lambda tensor: None,
) -> list[Difference]:
    """The tensors whose elements are not those of the plan, bit for bit, the worst first; none for a faithful growth.

    `read` gives the parent, `stored` the grown model as it was before its first step; both as float32.
    """
    found = []
    for name, tensor in plan.new.tensors().items():
        progress(name)
        for kind in kinds:
            worst, largest, index = 0.0, 0.0, (0,) * len(tensor.shape)
            for box in _blocks(tensor.shape):
                planned, got = plan.evaluate(name, box, read, kind), stored(kind, name, box)
                largest = max(largest, float(planned.abs().max()))
                if not torch.equal(planned, got):
                    gap = (got.double() - planned.double()).abs().nan_to_num(nan=float("inf"))
                    if float(gap.max()) > worst:
                        worst = float(gap.max())
                        at = torch.unravel_index(gap.argmax(), gap.shape)
                        index = tuple(int(i) + a for i, a in zip(at, box.start, strict=True))
            if worst:
                found.append(Difference(kind, name, worst / largest if largest else float("inf"), index))
    return sorted(found, key=lambda d: -d.error)


def _blocks(shape: tuple[int, ...]) -> Iterator[Box]:
    whole = Box.whole(shape)
    rows = max(1, _BLOCK * shape[0] // max(whole.numel, 1))
    for start in range(0, shape[0], rows):
        yield Box((start, *whole.start[1:]), (min(start + rows, shape[0]), *whole.stop[1:]))

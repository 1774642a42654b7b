"""What becomes of the residual stream in a growth: of states that a model keeps of what entered its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growth.architecture import Architecture
from growth.maps import AxisMap, LayerMap
from growth.plan import Plan
from growth.step import Step

HIDDEN, WRITE = "hidden", "write"


@dataclass(frozen=True, eq=False)
class Stream:
    """What entered each block of the grown model, where that follows from what entered those of the old one.

    blocks: for each block of the new model, the old one that the same has entered. widths: how channels change, one map
    after the other, as those of what writes to the stream do.
    """

    blocks: tuple[int, ...]
    widths: tuple[AxisMap, ...]

    @staticmethod
    def of(plan: Plan) -> Stream | None:
        """Of a plan; None where the stream of the new model does not follow from that of the old one alone."""
        if plan.old is None or not plan.preserves:
            return None
        blocks, widths = tuple(range(plan.old.depth)), list[AxisMap]()
        for step in plan.steps:
            entered, width = _blocks(step), step.axes.get(HIDDEN)
            if entered is None or (width is not None and not _is_of_writers(width)):
                return None
            blocks = tuple(blocks[block] for block in entered)
            widths += [width] if width is not None else []
        return Stream(blocks, tuple(widths))

    def widened(self, x: Tensor) -> Tensor:
        """States [..., old hidden] as those of the new model, [..., hidden]."""
        for width in self.widths:
            source, mixed, old = torch.from_numpy(width.source).to(x.device), _mixed(width), x
            factor = width.factor(WRITE, "weight")
            shares = torch.from_numpy(np.where(width.source < 0, 0, factor)).to(x)
            x = sum(x[..., source[:, k].clamp(min=0)] * shares[:, k] for k in range(source.shape[1]))  # type: ignore[assignment]
            if (mixes := width.mixes_of(WRITE)) is not None:
                rows = mixes[width.mix[mixed]] * factor[mixed, :1]
                x[..., torch.from_numpy(mixed).to(x.device)] = old @ torch.from_numpy(rows).to(old).T
        return x


def _mixed(width: AxisMap) -> NDArray[np.bool_]:
    """Which new channels get a linear combination of all old ones from what writes to them."""
    if width.mixes_of(WRITE) is None:
        return np.zeros(width.new, dtype=bool)
    return np.asarray((width.source[:, 0] < 0) & (width.mix >= 0))


def _is_of_writers(width: AxisMap) -> bool:
    """Whether every new channel is a linear combination of old ones, or zero, wherever something writes to it."""
    fresh = bool(((width.source[:, 0] < 0) & ~_mixed(width)).any()) and not width.starts_at_zero(WRITE)
    return not (fresh or width.ahead.any())


def _blocks(step: Step) -> tuple[int, ...] | None:
    """The old block that the same enters as each new one; None where there is none.

    A block that adds nothing is entered by what enters the next block, of the old ones that follow. Behind the last of
    these it is entered by what nothing has kept, but does not use it either.
    """
    if step.layers is None:
        return tuple(range(step.old.depth))
    old, new = step.old.blocks, step.new.blocks
    kept = [number for number, block in enumerate(new) if not step.layers.zero_branch[block.layer]]
    same = len(kept) == len(old) and all(
        _is_copy(step.layers, new[number].layer, before.layer) for number, before in zip(kept, old, strict=True)
    )
    if not same or not old:
        return None
    entered = list(_following(step.new, kept, len(old) - 1))
    like = all(new[number].kind == old[before].kind for number, before in enumerate(entered))
    return tuple(entered) if like else None


def _is_copy(layers: LayerMap, layer: int, source: int) -> bool:
    others = layers.source[layer, 1:]
    return bool(
        layers.source[layer, 0] == source
        and layers.coefficient[layer, 0] == 1
        and (others < 0).all()
        and not layers.noise[layer]
    )


def _following(new: Architecture, kept: list[int], last: int) -> Iterator[int]:
    """Yields for each new block the number of the first old one that is not before it."""
    passed = 0
    for number in range(new.depth):
        yield min(passed, last)
        passed += number in kept

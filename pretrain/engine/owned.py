"""What a rank owns of the parameters: flat ranges of the ZeRO partition, as boxes of logical tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.layout import Parameter, fragment_boxes
from pretrain.layout.zero import FragmentBox


@dataclass(frozen=True)
class Owned:
    """What this rank owns of one parameter: a flat range of it, as boxes of logical tensors.

    The range begins at element `start` of the parameter, and lies at `offset` in the ZeRO partition.
    weight is the fp32 master, exp_avg and exp_avg_sq its moments, average its moving average if the engine keeps one:
    flat views of the ZeRO partition.
    """

    parameter: Parameter
    start: int
    offset: int
    boxes: list[FragmentBox]
    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    average: Tensor | None = None


def owned_ranges(parameters: Iterable[tuple[Parameter, torch.nn.Parameter]], kinds: Sequence[Tensor]) -> list[Owned]:
    """What this rank owns. kinds: its partition of masters, of both moments and, if it is kept, of the average."""
    made = []
    for parameter, tensor in parameters:
        if (mapping := getattr(tensor, "_hp_mapping", None)) is None:
            continue
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        views = (x.narrow(0, here.start, here.numel) for x in kinds)
        boxes = fragment_boxes(parameter, there.start, there.numel)
        made.append(Owned(parameter, there.start, here.start, boxes, *views))
    return made

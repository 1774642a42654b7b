"""The logical tensors of a checkpoint that another stack wrote, of which any box can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from growth import Architecture, Box
from pretrain.checkpoint.places import check_tiling
from pretrain.checkpoint.writer import PIECE
from pretrain.errors import UserError
from pretrain.layout.cuts import Parameter
from pretrain.megatron_lm.archive import Stored

MOMENTS = ("exp_avg", "exp_avg_sq")


class Source:
    """Where each box of each logical tensor lies. It is filled with `hold`, checked once, and then read."""

    def __init__(self, folder: Path, arch: Architecture) -> None:
        self.folder, self.arch = folder, arch
        self.dtypes: set[str] = set()
        self._parts: dict[tuple[str, str], list[tuple[Box, Stored]]] = {}

    def hold(self, kind: str, parameter: Parameter, held: Box, stored: Stored) -> None:
        """`stored` is the box `held` of a parameter of Megatron-core, in that parameter's own coordinates."""
        for piece in parameter.pieces:
            if overlap := piece.local.intersect(held):
                box = overlap.relative_to(piece.local).moved(piece.box.start)
                self.hold_box(kind, piece.tensor, box, stored.part(overlap.relative_to(held)))

    def hold_box(self, kind: str, tensor: str, box: Box, stored: Stored) -> None:
        """`stored` is a box of a logical tensor."""
        self._parts.setdefault((kind, tensor), []).append((box, stored))
        if kind == "weight":
            self.dtypes.add(str(stored.dtype).removeprefix("torch."))

    @property
    def kinds(self) -> list[str]:
        """What there is: weights alone, or Adam's moments too."""
        return ["weight", *(kind for kind in MOMENTS if any(kind == other for other, _ in self._parts))]

    def check(self) -> None:
        """Raises UserError unless every element of every tensor is there, of all kinds, exactly once."""
        for kind in self.kinds:
            for name, tensor in self.arch.tensors().items():
                boxes = [box for box, _ in self._parts.get((kind, name), ())]
                if not boxes:
                    raise UserError(f"{self.folder}: {kind} of {name} is not there, and the arguments say that it is")
                try:
                    check_tiling(f"{kind} of {name}", tensor.shape, boxes)
                except ValueError as error:
                    raise UserError(f"{self.folder}: {error}") from error

    def check_finite(self, progress: bool = False) -> None:
        """Reads everything. Raises UserError naming the first tensor that is not finite in every element."""
        tensors = self.arch.tensors()
        total = 4 * self.arch.parameters() * len(self.kinds)
        with tqdm(total=total, unit="B", unit_scale=True, desc="is all of it finite", disable=not progress) as bar:
            for kind in self.kinds:
                for name, tensor in tensors.items():
                    for box in Box.whole(tensor.shape).parts(PIECE):
                        if not self.read(kind, name, box).isfinite().all():
                            raise UserError(f"{self.folder}: {kind} of {name} has elements that are NaN or infinite")
                        bar.update(4 * box.numel)

    def read(self, kind: str, name: str, box: Box) -> torch.Tensor:
        """The fp32 content of a box of a logical tensor."""
        out = torch.empty(box.shape)
        for held, stored in self._parts[kind, name]:
            if overlap := held.intersect(box):
                content = stored.read(overlap.relative_to(held))
                out[overlap.relative_to(box).slices()] = content
        return out

    def identity(self) -> dict[str, list[int]]:
        """The size and the time of last change of each file, by which an unchanged folder is recognised unread."""
        files = sorted({stored.path for parts in self._parts.values() for _, stored in parts})
        stats = {path: path.stat() for path in files}
        return {str(path.relative_to(self.folder)): [s.st_size, s.st_mtime_ns] for path, s in stats.items()}


@dataclass(frozen=True)
class Opened:
    """A checkpoint of another stack, checked, of which no tensor has been read.

    args: the arguments of its run, as Megatron-LM spells them. step: updates that its optimizer has made (0 without
    moments). optimizer: its constants (betas, eps, weight_decay, lr), as far as they are known.
    """

    source: Source
    format: str
    args: Mapping[str, Any]
    iteration: int
    step: int = 0
    optimizer: Mapping[str, Any] = field(default_factory=dict)


def number(value: Any, what: str) -> int:
    """A whole number that may be a tensor of one element, as the step of an optimizer. Raises UserError otherwise."""
    if isinstance(value, Stored) and not value.shape:
        value = value.read(Box((), ())).item()
    if type(value) not in (int, float) or value != int(value) or not 0 <= value < 1 << 60:
        raise UserError(f"{what} is no whole number")
    return int(value)

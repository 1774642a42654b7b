"""How logical tensors lie in the tensors of a Hugging Face file: as they are, fused, or transposed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from growth import Architecture, Box


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: logical tensors one under the other, the whole turned (GPT-2's linears are [in, out])."""

    parts: tuple[str, ...]
    turned: bool = False

    def shape(self, arch: Architecture) -> tuple[int, ...]:
        """Of the tensor in the file."""
        shapes = [arch.tensor(part).shape for part in self.parts]
        shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        return shape[::-1] if self.turned else shape

    def rows(self, arch: Architecture) -> dict[str, int]:
        """Logical tensor -> the row at which it begins, before turning."""
        starts, at = {}, 0
        for part in self.parts:
            starts[part] = at
            at += arch.tensor(part).shape[0]
        return starts

    def read(self, arch: Architecture, read: Callable[[str, Box], torch.Tensor], box: Box) -> torch.Tensor:
        """A box of the tensor in the file, from a reader of logical tensors."""
        if self.turned:
            box = _turned(box)
        parts = []
        for part, at in self.rows(arch).items():
            start, stop = max(box.start[0] - at, 0), min(box.stop[0] - at, arch.tensor(part).shape[0])
            if start < stop:
                parts.append(read(part, Box((start, *box.start[1:]), (stop, *box.stop[1:]))))
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole.T if self.turned else whole

    def place(self, arch: Architecture, part: str, box: Box) -> Box:
        """Where the box of a logical tensor lies in the tensor of the file."""
        at = self.rows(arch)[part]
        here = Box((box.start[0] + at, *box.start[1:]), (box.stop[0] + at, *box.stop[1:]))
        return _turned(here) if self.turned else here


def as_it_is(name: str) -> Stored:
    """A logical tensor under its own name."""
    return Stored((name,))


def _turned(box: Box) -> Box:
    return Box(box.start[::-1], box.stop[::-1])

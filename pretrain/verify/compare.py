"""A grown checkpoint against what its plan makes of the parent: every element of every kind, a piece at a time."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from growth import Box, MixCache, Plan
from pretrain.checkpoint import KINDS, Reader
from pretrain.checkpoint.writer import PIECE

ROUNDING = 2.0**-22  # of an element: its last bit; besides it 1e-12 of the largest element


@dataclass(frozen=True)
class Difference:
    """A tensor that is not what the plan makes: how many elements differ (of all of them), by how much of the largest
    expected one, and the factor that comes nearest to explaining it, if one does."""

    kind: str
    tensor: str
    elements: int
    of: int
    largest: float
    factor: float | None

    def __str__(self) -> str:
        text = f"{self.kind} of {self.tensor}: {self.elements:,} of {self.of:,} elements differ from the plan"
        text += f", by up to {self.largest:.3g} of the largest"
        return text + (f"; it is {self.factor:.6g} times what it should be" if self.factor is not None else "")


def differences(plan: Plan, parent: Reader, child: Reader, progress: bool = False) -> list[Difference]:
    """All tensors of `child` that are not, bit for bit, what the plan makes of `parent`. Memory: a few pieces.

    With learned factors the order of summation depends on the box: there the last bit of an element may differ.
    Moments that the parent does not have are zeros. Raises CorruptCheckpoint as reading does.
    """
    kinds = [kind for kind in KINDS if child.has(kind)]
    tensors = plan.new.tensors()
    learned = any(len(rows) > 1 for step in plan.steps for m in step.axes.values() for rows in m.mixes.values())
    rounding = ROUNDING if learned else 0.0
    total = 4 * len(kinds) * plan.new.parameters()
    found = []

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return parent.read(kind, name, box) if parent.has(kind) else torch.zeros(box.shape)

    cache: MixCache = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="against the plan", disable=not progress) as bar:
        for kind in kinds:
            for name, tensor in tensors.items():
                sums = _Sums(rounding)
                for box in Box.whole(tensor.shape).parts(PIECE):
                    sums.add(plan.evaluate(name, box, read, kind, cache=cache), child.read(kind, name, box))
                    bar.update(4 * box.numel)
                if sums.different:
                    size = tensor.numel
                    found.append(Difference(kind, name, sums.different, size, sums.largest(), sums.factor()))
    return found


@dataclass
class _Sums:
    rounding: float  # what may differ, as a share of an element
    different: int = 0
    error: float = 0.0  # largest absolute difference
    scale: float = 0.0  # largest absolute expected value
    ee: float = 0.0
    ef: float = 0.0
    ff: float = 0.0

    def add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        e, f = expected.double(), found.double()
        self.scale = max(self.scale, float(e.abs().max()))
        near = (e - f).abs() <= self.rounding * (e.abs() + 2.0**-18 * self.scale)
        self.different += int(((expected != found) & ~near).sum())
        self.error = max(self.error, float((e - f).abs().max()))
        self.ee += float((e * e).sum())
        self.ef += float((e * f).sum())
        self.ff += float((f * f).sum())

    def largest(self) -> float:
        return self.error / self.scale if self.scale else float("inf")

    def factor(self) -> float | None:
        """The least-squares factor, where it leaves next to nothing unexplained."""
        if not self.ee or self.ff * self.ee - self.ef**2 > 1e-8 * self.ff * self.ee:
            return None
        return self.ef / self.ee

"""Low-rank adapters of a model's matrices (Hu et al. 2021, "LoRA", section 4.1).

An adapted matrix W [out, in] has two thin ones beside it, A [rank, in] and B [out, rank], and the model multiplies by
W + alpha / rank * B A. B starts at zero, so that attaching adapters changes nothing. Merging them makes the sum W,
which is no linear map of the old tensors: it takes rows of B and columns of A, for any box.

No family lists these tensors: they follow from the rows of its table. Their short dimension is the axis `rank`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
import torch

from growth.box import Box
from growth.errors import GrowthError
from growth.family import DISTANCES, Dim, Family, TensorSpec

RANK = "rank"
PARTS = {"attention": ("heads", "kv_heads"), "mlp": ("ffn",)}
"""What adapters can be on: the matrices of the layers that have one of these axes."""


def part_of(row: TensorSpec) -> str | None:
    """The part of a layer that a row of a table is a matrix of; None: of none that adapters can be on."""
    axes = {axis for dim in row.dims for axis in dim.axes}
    if not row.layered or len(row.dims) != 2 or axes & {RANK, DISTANCES}:
        return None
    return next((part for part, own in PARTS.items() if axes & set(own)), None)


@dataclass(frozen=True, slots=True)
class Adapters:
    """`rank` and `alpha` as above; `on`: among PARTS, in their order."""

    rank: int
    alpha: float
    on: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, row: TensorSpec) -> bool:
        """Whether the tensors of a row have adapters."""
        return part_of(row) in self.on

    def rows(self, row: TensorSpec) -> tuple[TensorSpec, ...]:
        """A row of a table and, right behind it, those of A and B if it has them."""
        if not self.adapts(row):
            return (row,)
        a, b = names(row.name)
        out, into = row.dims
        return (
            row,
            TensorSpec(a, (Dim((RANK,), "write"), into), "normal", row.kinds),
            TensorSpec(b, (out, Dim((RANK,), "read")), "zero", row.kinds),
        )

    def check(self, table: Family, sizes: dict[str, int]) -> None:
        """Raise GrowthError unless these can be adapters of a model of this family with these sizes."""
        known = [part for part in PARTS if any(part_of(row) == part for row in table.tensors)]
        if not self.on or list(self.on) != [part for part in known if part in self.on]:
            given = ", ".join(map(str, self.on)) or "nothing"
            raise GrowthError(f"adapters on {given}: {table.name} can have them on {', '.join(known)}, each named once")
        least = min(dim.size(sizes) for row in table.tensors if self.adapts(row) for dim in row.dims)
        if type(self.rank) is not int or not 1 <= self.rank <= least:
            raise GrowthError(
                f"adapters of rank {self.rank}: the smallest dimension of a matrix that would have them is {least}, so "
                f"choose 1 to {least}"
            )
        if not 0 < self.alpha < inf:
            raise GrowthError(f"adapters with alpha = {self.alpha}: it must be a number above 0 that is not infinite")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "on": list(self.on)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Adapters:
        return Adapters(data["rank"], data["alpha"], tuple(data["on"]))


def names(matrix: str) -> tuple[str, str]:
    """The names of A and B beside a matrix, as `peft` writes them (for a row of a table, or for a tensor)."""
    module = matrix.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def factors(box: Box, rank: int) -> tuple[Box, Box]:
    """The columns of A and the rows of B that a box of their matrix needs."""
    return Box((0, box.start[1]), (rank, box.stop[1])), Box((box.start[0], 0), (box.stop[0], rank))


def merged(matrix: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """matrix + scale * b @ a, of a box and its `factors`, in the type of the matrix. Summed in double precision in the
    order of the rank, so that an element does not depend on its box."""
    from growth.evaluate.row_sums import add_weighted  # It brings numba, which is not imported before it is needed.

    total = matrix.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    if total.numel():
        add_weighted(total, a.double(), scale * np.asarray(b.double().numpy()))
    return total.to(matrix.dtype)

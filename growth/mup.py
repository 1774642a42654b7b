"""Maximal-update parametrization (muP): how a tensor is drawn and how fast it learns follows from the model's width.

Yang et al., 2022, "Tensor Programs V", table 3, for Adam: init and learning rate alone, and no multipliers in the
forward pass. Dey et al., 2025, "Don't be lazy: CompleteP enables compute-efficient deep transformers", for depth,
epsilon and weight decay. All are factors of what the base model has, and follow from the axes and the roles of a
tensor's dimensions. growth/README.md derives them, and says why growth by copies keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod, sqrt
from typing import Any

from growth.architecture import Architecture
from growth.family import GENERAL, RESIDUAL, Dim, TensorSpec

WIDE = frozenset((RESIDUAL, "heads", "kv_heads", "ffn"))
"""The axes along which a model is made wider; the size of any other, such as head_dim, is no width."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What multiplies the base model's fresh init of a tensor, its learning rate, and Adam's epsilon for it."""

    init: float = 1.0
    rate: float = 1.0
    eps: float = 1.0

    @property
    def decay(self) -> float:
        """What multiplies decoupled weight decay: the rate times the decay is the base model's."""
        return 1.0 / self.rate


@dataclass(frozen=True, slots=True)
class Mup:
    """The base model, whose factors are one: its hidden size; its heads (as wide as here) and neurons, 0 where they are
    to its hidden size as they are here; its layers of attention and MLP, 0 where depth is to change nothing."""

    hidden: int
    heads: int = 0
    ffn: int = 0
    layers: int = 0

    def factors(self, arch: Architecture, row: TensorSpec) -> Factors:
        """Those of the tensors of a row of the architecture's table."""
        into = [dim for dim in row.dims if GENERAL[dim.role] == "read"]
        out = [dim for dim in row.dims if GENERAL[dim.role] != "read"]
        a, c = 1.0 / self._times(arch, into), 1.0 / self._times(arch, out)
        if any(dim.role in ("last_gain", "last_shift") for dim in out):
            a, c = c, a  # a tied head has no factor of its own: the norm before it takes that
        if self.layers and row.layered:
            depth = 2 * self.layers / arch.branches
            a, c = (a * depth, c) if row.branch else (a, c * depth)
        is_head = not row.layered and not WIDE & {axis for dim in out for axis in dim.axes}
        return Factors(a if row.init in ("one", "zero") or is_head else sqrt(a), a, c)

    def _times(self, arch: Architecture, dims: Iterable[Dim]) -> float:
        """How many times as wide these dimensions are as in the base model."""
        sizes, hidden = arch.sizes, arch.sizes[RESIDUAL] / self.hidden
        heads = sizes["heads"] / self.heads if self.heads else hidden
        ffn = sizes["ffn"] / self.ffn if self.ffn else hidden
        times = {RESIDUAL: hidden, "heads": heads, "kv_heads": heads, "ffn": ffn}
        return prod(times.get(axis, 1.0) for dim in dims for axis in dim.axes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Mup:
        return Mup(data["hidden"], data["heads"], data["ffn"], data["layers"])

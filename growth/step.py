"""A step: one layer map and at most one map per axis, between two architectures of a family. Adapters are attached and
merged by steps that do nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from growth.adapters import RANK, Adapters
from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.evaluate.recipe import Maps
from growth.family import LAYERS
from growth.maps import AxisMap, LayerMap
from growth.moments import DEFAULT_MOMENTS, Moments


@dataclass(frozen=True, eq=False)
class Step:
    """`operators` names what made the step, for people; `preserves` is what these operators claim for this family, and
    `approximate` says where the transformed moments are not what training the new model from the start would have made.

    Raises GrowthError when the maps do not lead from the old sizes to the new ones, or a layer to one of its kind.
    """

    old: Architecture
    new: Architecture
    operators: tuple[str, ...]
    preserves: bool
    layers: LayerMap | None = None
    axes: Mapping[str, AxisMap] = field(default_factory=dict)
    moments: Moments = DEFAULT_MOMENTS
    approximate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.old.family != self.new.family:
            raise GrowthError(f"a {self.old.family} cannot grow into a {self.new.family}")
        for axis, size in self.new.sizes.items():
            old = self.old.sizes.get(axis, 0)
            m = self.layers if axis == LAYERS else self.axes.get(axis)
            made = (m.old, m.new) if m else (old, old)
            if made != (old, size):
                raise GrowthError(
                    f"{axis}: the step goes from {old} to {size}, but its map from {made[0]} to {made[1]}"
                )
        if self.layers is None and (self.old.kinds, self.old.calls) != (self.new.kinds, self.new.calls):
            raise GrowthError("layers: the blocks change, and the step has no map of layers")
        if self.layers and (self.old.mixed or self.new.mixed):
            self._check_kinds(self.layers)
        if unknown := sorted(set(self.axes) - set(self.new.sizes)):
            raise GrowthError(f"{self.new.family} has no axis {', '.join(unknown)}")
        if (self.old.adapters or self.new.adapters) and (
            self.layers or set(self.axes) - {RANK} or (self.old.adapters and self.new.adapters)
        ):
            raise GrowthError("adapters are merged before anything else grows, and attached after it")

    def _check_kinds(self, layers: LayerMap) -> None:
        for i, kind in enumerate(self.new.kinds):
            for source in layers.source[i]:
                if source >= 0 and self.old.kinds[source] != kind:
                    raise GrowthError(
                        f"layers: new layer {i} is of kind {kind} and cannot be made of old layer {source}, of kind "
                        f"{self.old.kinds[source]}: a layer is made of layers of its own kind, or drawn afresh"
                    )

    @cached_property
    def maps(self) -> Maps:
        """What evaluates boxes of this step."""
        return Maps(self.old, self.new, self.layers, self.axes, self.moments)

    def merged(self, name: str) -> tuple[str, str] | None:
        """The names of A and B that this step merges into a tensor; None where it merges none."""
        return self.old.adapter(name) if self.new.adapters is None else None

    def merge(self, later: Step) -> Step | None:
        """This step and then `later` as one step, or None when both map the same axis or one of them is of adapters."""
        if any(arch.adapters for arch in (self.old, self.new, later.new)):
            return None
        if (self.layers and later.layers) or set(self.axes) & set(later.axes) or self.moments != later.moments:
            return None
        return Step(
            self.old,
            later.new,
            self.operators + later.operators,
            self.preserves and later.preserves,
            self.layers or later.layers,
            {**self.axes, **later.axes},
            self.moments,
            self.approximate + later.approximate,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "new": self.new.to_json(),
            "operators": list(self.operators),
            "preserves": self.preserves,
            "layers": self.layers.to_json() if self.layers else None,
            "axes": [m.to_json() for m in self.axes.values()],
            "moments": [self.moments.old, self.moments.new],
            "approximate": list(self.approximate),
        }

    @staticmethod
    def from_json(old: Architecture, data: Mapping[str, Any]) -> Step:
        """Raises GrowthError for a step that does not lead from the old sizes to its new ones."""
        new = Architecture.from_json(data["new"])
        if unknown := sorted({m["axis"] for m in data["axes"]} - {*new.table.axes, RANK}):
            raise GrowthError(f"{new.family} has no axis {unknown[0]!r}")
        dims = [dim for row in old.table.tensors for dim in row.dims]
        maps = [
            AxisMap.from_json(
                m, new.sizes.get(m["axis"], 0), {dim.size(old.sizes) for dim in dims if dim.axes[0] == m["axis"]}
            )
            for m in data["axes"]
        ]
        return Step(
            old,
            new,
            tuple(data["operators"]),
            data["preserves"],
            LayerMap.from_json(data["layers"], new.layers) if data["layers"] else None,
            {m.axis: m for m in maps},
            Moments(*data["moments"]),
            tuple(data["approximate"]),
        )


def merging(old: Architecture) -> Step:
    """Adapters become a part of what they are on. The moments of that stay as they are."""
    return Step(old, old.with_adapters(None), ("adapters: merge",), True)


def attaching(old: Architecture, adapters: Adapters) -> Step:
    """New adapters: A as fresh weights are, B zero."""
    rank = AxisMap.make(RANK, 0, [-1] * adapters.rank)
    return Step(old, old.with_adapters(adapters), ("adapters: attach",), True, axes={RANK: rank})

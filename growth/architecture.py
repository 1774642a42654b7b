"""An architecture: a family with its sizes and logical scalars, and the logical tensors that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from growth.errors import GrowthError
from growth.family import LAYERS, Family, TensorSpec, family


@dataclass(frozen=True, slots=True)
class LogicalTensor:
    """One full-size, unsharded tensor of a model. `layer` is None outside the layers."""

    name: str
    spec: TensorSpec
    layer: int | None
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Architecture:
    """Family, sizes (axis -> size, and "layers") and logical scalars (derived numbers that growth changes, such as
    the epsilon of the norms). Scalars that are not given take the family's defaults.

    Raises GrowthError for an unknown family, axis or scalar and for sizes that do not fit together.
    """

    family: str
    sizes: Mapping[str, int]
    scalars: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = family(self.family)
        table.check(self.sizes)
        if unknown := sorted(set(self.scalars) - set(table.scalars)):
            raise GrowthError(
                f"{self.family} has no scalar {', '.join(unknown)}: its scalars are {', '.join(sorted(table.scalars))}"
            )
        order = (LAYERS, *table.axes)
        object.__setattr__(self, "sizes", {axis: int(self.sizes[axis]) for axis in order})
        scalars = {**table.default_scalars(self.sizes), **{k: float(v) for k, v in self.scalars.items()}}
        object.__setattr__(self, "scalars", scalars)

    def __hash__(self) -> int:
        return hash((self.family, tuple(self.sizes.items()), tuple(self.scalars.items())))

    @property
    def table(self) -> Family:
        return family(self.family)

    @property
    def layers(self) -> int:
        return self.sizes[LAYERS]

    @cached_property
    def _tensors(self) -> dict[str, LogicalTensor]:
        return {t.name: t for t in self._walk()}

    def _walk(self) -> Iterator[LogicalTensor]:
        specs = self.table.tensors
        layered = [s for s in specs if s.layered]
        first = specs.index(layered[0])
        for spec in specs[:first]:
            yield self._tensor(spec, None)
        for layer in range(self.layers):
            for spec in layered:
                yield self._tensor(spec, layer)
        for spec in specs[first + len(layered) :]:
            yield self._tensor(spec, None)

    def _tensor(self, spec: TensorSpec, layer: int | None) -> LogicalTensor:
        name = spec.name if layer is None else spec.name.format(layer=layer)
        return LogicalTensor(name, spec, layer, tuple(d.size(self.sizes) for d in spec.dims))

    def tensors(self) -> dict[str, LogicalTensor]:
        """Every logical tensor by name, in model order."""
        return dict(self._tensors)

    def tensor(self, name: str) -> LogicalTensor:
        """One logical tensor; raises GrowthError for a name that this architecture does not have."""
        if name not in self._tensors:
            raise GrowthError(f"{self.family} with {self.layers} layers has no tensor {name!r}")
        return self._tensors[name]

    def parameters(self) -> int:
        """The number of parameters."""
        return sum(t.numel for t in self._tensors.values())

    def replace(
        self, sizes: Mapping[str, int] | None = None, scalars: Mapping[str, float] | None = None
    ) -> Architecture:
        """The same family with some sizes and scalars changed; the other scalars stay as they are."""
        return Architecture(self.family, {**self.sizes, **(sizes or {})}, {**self.scalars, **(scalars or {})})

    def to_json(self) -> dict[str, Any]:
        return {"family": self.family, "sizes": dict(self.sizes), "scalars": dict(self.scalars)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Architecture:
        return Architecture(data["family"], data["sizes"], data["scalars"])

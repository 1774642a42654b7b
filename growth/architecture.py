"""An architecture: a family with its sizes and logical scalars, and the logical tensors that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    the epsilon of the norms). Scalars that are not given take the family's defaults. `rope_frequencies` are those of
    the head_dim / 2 rotary pairs, in radians a position, where they do not follow from rope_theta (empty: they do).

    Raises GrowthError for an unknown family, axis or scalar, for sizes that do not fit together and for scalars that
    are not positive numbers.
    """

    family: str
    sizes: Mapping[str, int]
    scalars: Mapping[str, float] = field(default_factory=dict)
    rope_frequencies: tuple[float, ...] = ()

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
        if wrong := [f"{name} = {value}" for name, value in scalars.items() if not 0 < value < inf]:
            raise GrowthError(f"{self.family}: {', '.join(wrong)} must be a number above 0 that is not infinite")
        object.__setattr__(self, "scalars", scalars)
        object.__setattr__(self, "rope_frequencies", tuple(map(float, self.rope_frequencies)))
        if self.rope_frequencies:
            self._check_frequencies()

    def _check_frequencies(self) -> None:
        if "rope_theta" not in self.scalars:
            raise GrowthError(f"{self.family} has no rotary embedding, hence no frequencies")
        right = all(0 < frequency < inf for frequency in self.rope_frequencies)
        if 2 * len(self.rope_frequencies) != self.sizes["head_dim"] or not right:
            raise GrowthError(
                f"{self.family}: head_dim = {self.sizes['head_dim']} needs positive rotary frequencies for half as "
                f"many pairs, not {self.rope_frequencies}"
            )

    def __hash__(self) -> int:
        return hash((self.family, tuple(self.sizes.items()), tuple(self.scalars.items()), self.rope_frequencies))

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

    def frequencies(self) -> NDArray[np.float64]:
        """[head_dim / 2]: radians a position by which each rotary pair turns (Su et al., 2021, "RoFormer")."""
        if self.rope_frequencies:
            return np.array(self.rope_frequencies)
        dim = self.sizes["head_dim"]
        return np.asarray(self.scalars["rope_theta"] ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))

    def replace(
        self,
        sizes: Mapping[str, int] | None = None,
        scalars: Mapping[str, float] | None = None,
        rope_frequencies: tuple[float, ...] | None = None,
    ) -> Architecture:
        """The same family with some sizes and scalars changed; the other scalars stay as they are, and a table of
        rotary frequencies while head_dim does."""
        grown = {**self.sizes, **(sizes or {})}
        if rope_frequencies is None:
            rope_frequencies = self.rope_frequencies if grown["head_dim"] == self.sizes["head_dim"] else ()
        return Architecture(self.family, grown, {**self.scalars, **(scalars or {})}, rope_frequencies)

    def to_json(self) -> dict[str, Any]:
        data = {"family": self.family, "sizes": dict(self.sizes), "scalars": dict(self.scalars)}
        return {**data, "rope_frequencies": list(self.rope_frequencies)} if self.rope_frequencies else data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Architecture:
        frequencies = tuple(data.get("rope_frequencies", ()))
        return Architecture(data["family"], data["sizes"], data["scalars"], frequencies)

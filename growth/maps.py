"""Axis maps and layer maps: what each new index of an axis, and each new layer, is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from growth.errors import GrowthError
from growth.family import WRITERS
from growth.runs import decode_floats, decode_ints, encode_floats, encode_ints

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _columns(values: ArrayLike, dtype: type) -> NDArray[Any]:
    """[new] or [new, K] -> [new, K]."""
    array: NDArray[Any] = np.asarray(values, dtype=dtype)
    return array[:, None] if array.ndim == 1 else array


@dataclass(frozen=True, eq=False)
class AxisMap:
    """New index i of `axis` is the sum over k of old index source[i, k] times a coefficient of its role.

    source    int64 [new, K]; -1 for no source (packed to the left: source[i, 0] = -1 means that i has none);
              old + j for row j of `mixes`
    weight    role -> float64 [new, K]: the factor of weights; a role that is not there has factor 1
    gradient  role -> float64 [new, K]: the factor of gradients, hence of exp_avg (exp_avg_sq takes its square)
    born      bool [new]: the index is new in this event, so that its moments start at zero
    zero      the roles for which an index without a source is zero instead of a fresh init
    mixes     float64 [M, old]: linear combinations of all old indices that new ones may be made of, for weights;
              their moments start at zero. Only for an axis that is a dimension by itself
    """

    axis: str
    old: int
    source: Ints
    weight: Mapping[str, Floats] = field(default_factory=dict)
    gradient: Mapping[str, Floats] = field(default_factory=dict)
    born: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))
    zero: frozenset[str] = frozenset()
    mixes: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    @staticmethod
    def make(
        axis: str,
        old: int,
        source: ArrayLike,
        *,
        write: ArrayLike = 1.0,
        read: ArrayLike = 1.0,
        gain: ArrayLike = 1.0,
        shift: ArrayLike = 1.0,
        gradient: Mapping[str, ArrayLike] | None = None,
        born: ArrayLike | None = None,
        zero: Sequence[str] = (),
        mixes: ArrayLike = (),
        **writers: ArrayLike,
    ) -> AxisMap:
        """A map from the factors of the roles (numbers, [new] or [new, K]).

        The factors of the gradients follow: where the weights of writers take `write` and those of readers `read`,
        gradients take the pair swapped, and those of gains and shifts `write * read / own`; `gradient` overrides.
        `born` is by default every index without a source. `writers` are special writers (query, key, gate).
        Raises GrowthError for a source outside the old axis.
        """
        src = _columns(source, np.int64)
        mixed = np.asarray(mixes, dtype=np.float64).reshape(-1, old)
        if src.size and (src.max() >= old + len(mixed) or src.min() < -1):
            raise GrowthError(f"{axis}: a source index lies outside the old axis of size {old}")

        def full(values: ArrayLike) -> Floats:
            array = np.asarray(values, dtype=np.float64)
            return np.broadcast_to(array[:, None] if array.ndim == 1 else array, src.shape)

        e, r = full(write), full(read)
        weights = {"write": e, "read": r, "gain": full(gain), "shift": full(shift)}
        gradients = {"write": r, "read": e, "gain": e * r / full(gain), "shift": e * r / full(shift)}
        for role, values in writers.items():
            weights[role] = full(values)
            gradients[role] = r * e / full(values)
        gradients |= {role: full(values) for role, values in (gradient or {}).items()}
        return AxisMap(
            axis,
            old,
            src,
            {role: w for role, w in weights.items() if (w != 1.0).any()},
            {role: g for role, g in gradients.items() if (g != 1.0).any()},
            np.asarray(src[:, 0] < 0 if born is None else born, dtype=bool),
            frozenset(zero),
            mixed,
        )

    @staticmethod
    def identity(axis: str, size: int) -> AxisMap:
        return AxisMap.make(axis, size, np.arange(size))

    @property
    def new(self) -> int:
        return len(self.source)

    def factor(self, role: str, kind: str) -> Floats:
        """float64 [new, K]: the factor for this role of "weight", "exp_avg" or "exp_avg_sq"."""
        table = self.weight if kind == "weight" else self.gradient
        found = table.get(role)
        if found is None and role in WRITERS:
            found = table.get("write")
        if found is None:
            return np.broadcast_to(1.0, self.source.shape)
        return found * found if kind == "exp_avg_sq" else found

    def starts_at_zero(self, role: str) -> bool:
        """Whether indices without a source are zero in a dimension of this role."""
        return role in self.zero or (role in WRITERS and "write" in self.zero)

    def to_json(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "old": self.old,
            "source": encode_ints(self.source),
            "weight": {role: encode_floats(w) for role, w in sorted(self.weight.items())},
            "gradient": {role: encode_floats(g) for role, g in sorted(self.gradient.items())},
            "born": encode_floats(self.born[:, None]),
            "zero": sorted(self.zero),
            "mixes": encode_floats(self.mixes.T),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> AxisMap:
        return AxisMap(
            data["axis"],
            data["old"],
            decode_ints(data["source"]),
            {role: decode_floats(w) for role, w in data["weight"].items()},
            {role: decode_floats(g) for role, g in data["gradient"].items()},
            decode_floats(data["born"])[:, 0].astype(bool),
            frozenset(data["zero"]),
            decode_floats(data["mixes"]).T.reshape(-1, data["old"]),
        )


@dataclass(frozen=True, eq=False)
class LayerMap:
    """New layer i is the sum over k of old layer source[i, k] times coefficient[i, k].

    source        int64 [new, K]; -1 for no source: a layer whose every element is a fresh init
    zero_branch   bool [new]: the tensors that write the residual stream are zero, so that the layer is the identity
    born          bool [new]: the layer is new in this event, so that its moments start at zero
    """

    old: int
    source: Ints
    coefficient: Floats
    zero_branch: Bools
    born: Bools

    @staticmethod
    def make(
        old: int,
        source: ArrayLike,
        *,
        born: ArrayLike,
        zero_branch: ArrayLike | bool = False,
        coefficient: ArrayLike = 1.0,
    ) -> LayerMap:
        """Raises GrowthError for a source that is not an old layer."""
        src = _columns(source, np.int64)
        if src.size and (src.max() >= old or src.min() < -1):
            raise GrowthError(f"layers: a source layer lies outside the {old} old layers")
        c = np.asarray(coefficient, dtype=np.float64)
        return LayerMap(
            old,
            src,
            np.broadcast_to(c[:, None] if c.ndim == 1 else c, src.shape),
            np.broadcast_to(np.asarray(zero_branch, dtype=bool), len(src)),
            np.broadcast_to(np.asarray(born, dtype=bool), len(src)),
        )

    @property
    def new(self) -> int:
        return len(self.source)

    def to_json(self) -> dict[str, Any]:
        return {
            "old": self.old,
            "source": encode_ints(self.source),
            "coefficient": encode_floats(self.coefficient),
            "zero_branch": encode_floats(self.zero_branch[:, None]),
            "born": encode_floats(self.born[:, None]),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerMap:
        return LayerMap(
            data["old"],
            decode_ints(data["source"]),
            decode_floats(data["coefficient"]),
            decode_floats(data["zero_branch"])[:, 0].astype(bool),
            decode_floats(data["born"])[:, 0].astype(bool),
        )

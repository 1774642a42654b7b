"""Axis maps and layer maps: what each new index of an axis, and each new layer, is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from growth.encoding import decode_floats, decode_ints, decode_matrix, encode_floats, encode_ints, encode_matrix
from growth.errors import GrowthError
from growth.family import GENERAL

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _columns(values: ArrayLike, dtype: type) -> NDArray[Any]:
    """[new] or [new, K] -> [new, K]."""
    array: NDArray[Any] = np.asarray(values, dtype=dtype)
    return array[:, None] if array.ndim == 1 else array


def _but_ones(factors: Mapping[str, Floats]) -> dict[str, Floats]:
    """Without the general roles whose factors are one; a special role must not fall back on its general one."""
    return {role: f for role, f in factors.items() if (f != 1.0).any() or GENERAL[role] != role}


@dataclass(frozen=True, eq=False)
class AxisMap:
    """New index i of `axis` is the sum over k of old index source[i, k] times a coefficient of its role.

    source    int64 [new, K]; -1 for no source (packed to the left: source[i, 0] = -1 means that i has none)
    weight    role -> float64 [new, K]: the factor of weights; a role that is not there has factor 1
    gradient  role -> float64 [new, K]: the factor of gradients, hence of exp_avg (exp_avg_sq takes its square)
    born      bool [new]: the index is new in this event, so that its moments start at zero
    zero      the roles for which an index without a source is zero instead of a fresh init
    mixes     role -> float64 [M, old]: linear combinations of all old indices, for weights of that role. Index i
              without a source is made of row mix[i] (-1 for none); its moments start at zero. Or [M * rest, old *
              rest]: of all old indices of a dimension whose further axes have `rest` of them together, such as the
              channels of all heads; where the axis is alone in a dimension, it takes the mean over these
    mix       int64 [new]
    noise     readers of copies of one index take relative noise of this standard deviation that sums to nothing over
              the copies
    ahead     bool [new]: writers of this index are made of the next layer of the same kind instead of their own
    """

    axis: str
    old: int
    source: Ints
    weight: Mapping[str, Floats] = field(default_factory=dict)
    gradient: Mapping[str, Floats] = field(default_factory=dict)
    born: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))
    zero: frozenset[str] = frozenset()
    mixes: Mapping[str, Floats] = field(default_factory=dict)
    mix: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    noise: float = 0.0
    ahead: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @staticmethod
    def make(
        axis: str,
        old: int,
        source: ArrayLike,
        factors: Mapping[str, ArrayLike] | None = None,
        *,
        gradient: Mapping[str, ArrayLike] | None = None,
        born: ArrayLike | None = None,
        zero: Sequence[str] = (),
        noise: float = 0.0,
    ) -> AxisMap:
        """A map from the factors of roles: role -> a number, [new] or [new, K]. The general roles (write, read, gain,
        shift) have factor 1 by default, the special ones (query, key, gate, last_gain, last_shift) that of the role
        that they specialise.

        The factors of gradients follow: where the weights of writers take `e` and those of readers `r`, gradients take
        the pair swapped, and those of any other role `e * r / own`; `gradient` overrides. `born` is by default every
        index without a source.
        Raises GrowthError for a source outside the old axis.
        """
        columns = _columns(source, np.int64)
        if columns.size and (columns.max() >= old or columns.min() < -1):
            raise GrowthError(f"{axis}: a source index lies outside the old axis of size {old}")

        def full(values: ArrayLike) -> Floats:
            array = np.asarray(values, dtype=np.float64)
            return np.broadcast_to(array[:, None] if array.ndim == 1 else array, columns.shape)

        general = dict.fromkeys(GENERAL.values(), 1.0)
        weights = {role: full(values) for role, values in {**general, **(factors or {})}.items()}
        write, read = weights["write"], weights["read"]
        gradients = {"write": read, "read": write}
        given = gradients.keys() | (gradient or {}).keys()
        gradients |= {role: write * read / own for role, own in weights.items() if role not in given}
        gradients |= {role: full(values) for role, values in (gradient or {}).items()}
        return AxisMap(
            axis,
            old,
            columns,
            weight=_but_ones(weights),
            gradient=_but_ones(gradients),
            born=np.asarray(columns[:, 0] < 0 if born is None else born, dtype=bool),
            zero=frozenset(zero),
            mix=np.full(len(columns), -1),
            noise=noise,
            ahead=np.zeros(len(columns), dtype=bool),
        )

    @staticmethod
    def identity(axis: str, size: int) -> AxisMap:
        return AxisMap.make(axis, size, np.arange(size))

    @property
    def new(self) -> int:
        return len(self.source)

    def mixing(self, mixes: Mapping[str, ArrayLike], mix: ArrayLike) -> AxisMap:
        """The same map with linear combinations: role -> `mixes`, and which row of it each new index is, or -1."""
        rows = {role: np.atleast_2d(np.asarray(matrix, dtype=np.float64)) for role, matrix in mixes.items()}
        return replace(self, mixes=rows, mix=np.asarray(mix, dtype=np.int64))

    def made_ahead(self, which: Bools) -> AxisMap:
        """The same map with the writers of some indices made of the next layer."""
        return replace(self, ahead=which)

    def factor(self, role: str, kind: str) -> Floats:
        """float64 [new, K]: the factor for this role of "weight", "exp_avg" or "exp_avg_sq"."""
        table = self.weight if kind == "weight" else self.gradient
        factor = table.get(role, table.get(GENERAL[role]))
        if factor is None:
            return np.broadcast_to(1.0, self.source.shape)
        return factor * factor if kind == "exp_avg_sq" else factor

    def starts_at_zero(self, role: str) -> bool:
        """Whether indices without a source are zero in a dimension of this role."""
        return role in self.zero or GENERAL[role] in self.zero

    def mixes_of(self, role: str) -> Floats | None:
        """The linear combinations for this role, if it has any: see `mixes`."""
        return self.mixes.get(role, self.mixes.get(GENERAL[role]))

    def to_json(self) -> dict[str, Any]:
        return {
            "axis": self.axis,
            "old": self.old,
            "source": encode_ints(self.source),
            "weight": {role: encode_floats(w) for role, w in sorted(self.weight.items())},
            "gradient": {role: encode_floats(g) for role, g in sorted(self.gradient.items())},
            "born": encode_floats(self.born[:, None]),
            "zero": sorted(self.zero),
            "mixes": self._mixes_to_json(),
            "mix": encode_ints(self.mix[:, None]),
            "noise": self.noise,
            "ahead": encode_floats(self.ahead[:, None]),
        }

    def _mixes_to_json(self) -> dict[str, Any]:
        """Each matrix once: a role with the same as another one names it."""
        data: dict[str, Any] = {}
        for role, rows in sorted(self.mixes.items(), reverse=True):
            same = next((r for r in data if not isinstance(data[r], str) and np.array_equal(self.mixes[r], rows)), None)
            data[role] = same or encode_matrix(rows)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any], new: int, dims: Collection[int] = ()) -> AxisMap:
        """A map onto `new` indices, where there are dimensions of `dims` old indices that begin with this axis; raises
        GrowthError for one that is none."""
        axis, old = data["axis"], data["old"]
        source = decode_ints(data["source"], new)
        weight = {role: decode_floats(w, new) for role, w in data["weight"].items()}
        gradient = {role: decode_floats(g, new) for role, g in data["gradient"].items()}
        mixes = _mixes_from_json(data["mixes"], {old, *dims})
        mix = decode_ints(data["mix"], new)[:, 0]
        if unknown := sorted({*weight, *gradient, *data["zero"], *mixes} - set(GENERAL)):
            raise GrowthError(f"{axis}: there is no role {unknown[0]!r}")
        if any(f.shape != source.shape for table in (weight, gradient) for f in table.values()):
            raise GrowthError(f"{axis}: there must be a factor for each source")
        _check_sources(axis, source, old)
        for rows in mixes.values():
            _check_sources(axis, mix, len(rows) * old // max(rows.shape[1], 1))
        return AxisMap(
            axis,
            old,
            source,
            weight=weight,
            gradient=gradient,
            born=decode_floats(data["born"], new)[:, 0].astype(bool),
            zero=frozenset(data["zero"]),
            mixes=mixes,
            mix=mix,
            noise=data["noise"],
            ahead=decode_floats(data["ahead"], new)[:, 0].astype(bool),
        )


def over_further(mixes: Any, old: int) -> Any:
    """[M, old] of linear combinations [M * rest, old * rest]: the mean over the further axes. Of NumPy or torch."""
    rest = mixes.shape[1] // old
    return mixes.reshape(-1, rest, old, rest).diagonal(0, 1, 3).mean(-1)


def _check_sources(what: str, source: Ints, old: int) -> None:
    if source.size and (source.max() >= old or source.min() < -1):
        raise GrowthError(f"{what}: a source lies outside the {old} old ones")


def _mixes_from_json(data: Mapping[str, Any], widths: Collection[int]) -> dict[str, Floats]:
    """The inverse of `_mixes_to_json`; raises GrowthError for a role that names one without a matrix."""
    matrices = {role: decode_matrix(rows, widths) for role, rows in data.items() if not isinstance(rows, str)}
    if unknown := sorted({rows for rows in data.values() if isinstance(rows, str)} - set(matrices)):
        raise GrowthError(f"linear combinations as those of {unknown[0]!r}, which has none")
    return {role: matrices[rows] if isinstance(rows, str) else matrices[role] for role, rows in data.items()}


@dataclass(frozen=True, eq=False)
class LayerMap:
    """New layer i is the sum over k of old layer source[i, k] times coefficient[i, k].

    source        int64 [new, K]; -1 for no source: a layer whose every element is a fresh init
    zero_branch   bool [new]: the tensors that write the residual stream are zero, so that the layer is the identity
    born          bool [new]: the layer is new in this event, so that its moments start at zero
    noise         float64 [new]: matrices of the layer take relative noise of this standard deviation
    """

    old: int
    source: Ints
    coefficient: Floats
    zero_branch: Bools
    born: Bools
    noise: Floats

    @staticmethod
    def make(
        old: int,
        source: ArrayLike,
        *,
        born: ArrayLike,
        zero_branch: ArrayLike | bool = False,
        coefficient: ArrayLike = 1.0,
        noise: ArrayLike = 0.0,
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
            np.broadcast_to(np.asarray(noise, dtype=np.float64), len(src)),
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
            "noise": encode_floats(self.noise[:, None]),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], new: int) -> LayerMap:
        """A map onto `new` layers; raises GrowthError for one that is none."""
        source, coefficient = decode_ints(data["source"], new), decode_floats(data["coefficient"], new)
        _check_sources("layers", source, data["old"])
        if coefficient.shape != source.shape:
            raise GrowthError("layers: there must be a coefficient for each source")
        return LayerMap(
            data["old"],
            source,
            coefficient,
            decode_floats(data["zero_branch"], new)[:, 0].astype(bool),
            decode_floats(data["born"], new)[:, 0].astype(bool),
            decode_floats(data["noise"], new)[:, 0],
        )

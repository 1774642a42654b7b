"""Learned growth: dense linear maps on any axis, whose factors somebody else has found (growth.learn, for one).

Wang et al., 2023, "Learning to grow pretrained models for efficient transformer training" (LiGO). None claims to
preserve; moments start again, because a sum of old elements has no second moment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import AxisMap, LayerMap
from growth.operators.registry import operator
from growth.step import Step

HEADS = ("heads", "kv_heads")


def option(axis: str, role: str) -> str:
    """The option of `dense` that has the matrix of a role along an axis."""
    return "value" if axis in HEADS and role == "write" else role


def _matrix(axis: str, what: str, value: ArrayLike, old: int, new: int, further: int = 1) -> NDArray[Any]:
    """float64 [new, old], or [new * further, old * further]; raises GrowthError for another shape or numbers that are
    not finite."""
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise GrowthError(f"{axis}: {what} is no matrix of numbers: {value!r:.60}") from None
    if matrix.shape not in ((new, old), (new * further, old * further)):
        channels = f", or {new * further} x {old * further} for its channels" if further > 1 else ""
        raise GrowthError(
            f"{axis}: {what} must be a matrix of {new} x {old} (new x old{channels}), not of shape {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise GrowthError(f"{axis}: {what} has entries that are not finite")
    return matrix


def _map(arch: Architecture, axis: str, new: int, factors: Mapping[str, ArrayLike]) -> AxisMap:
    """The map of an axis with a matrix for each role. Gains and shifts take that of writers; and where these are
    queries only, what a head has one of takes theirs."""
    old, further = arch.sizes[axis], arch.sizes["head_dim"] if axis in HEADS else 1
    mixes = {role: _matrix(axis, option(axis, role), x, old, new, further) for role, x in factors.items()}
    writers = mixes["write" if "write" in mixes else "query"]
    mixes |= dict.fromkeys(("write", "gain", "shift"), writers)
    return AxisMap.make(axis, old, np.full(new, -1)).mixing(mixes, np.arange(new))


@operator("hidden", "dense")
def dense_hidden(arch: Architecture, sizes: Mapping[str, int], write: ArrayLike, read: ArrayLike) -> Step:
    """New writers are `write` [new, old] times the old ones, gains and biases too; new readers take `read` [new, old].
    Wang et al., 2023 (LiGO), section 3.2."""
    m = _map(arch, "hidden", sizes["hidden"], {"write": write, "read": read})
    return Step(arch, arch.replace(sizes), (), False, axes={"hidden": m})


@operator("ffn", "dense")
def dense_ffn(
    arch: Architecture, sizes: Mapping[str, int], write: ArrayLike, read: ArrayLike, gate: ArrayLike | None = None
) -> Step:
    """Neurons mixed by `write` [new, old] on their input side and `read` [new, old] on their output side; `gate` where
    there is one (by default `write`). LiGO."""
    m = _map(arch, "ffn", sizes["ffn"], {"write": write, "read": read, "gate": write if gate is None else gate})
    return Step(arch, arch.replace(sizes), (), False, axes={"ffn": m})


@operator("heads", "dense")
def dense_heads(
    arch: Architecture, sizes: Mapping[str, int], query: ArrayLike, key: ArrayLike, value: ArrayLike, read: ArrayLike
) -> Step:
    """Heads mixed by a matrix each for their queries, keys and values, and by `read` for what reads them: [new, old],
    or [new * head_dim, old * head_dim] with the channels of all heads. Those of keys and values are of key-value heads,
    where the family has these. What a head has one of, such as its span, takes the mean over its channels. LiGO."""
    queries, values = {"query": query, "read": read}, {"key": key, "write": value}
    if "kv_heads" not in arch.sizes:
        maps = [_map(arch, "heads", sizes["heads"], {**queries, **values})]
    else:
        maps = [_map(arch, "heads", sizes["heads"], queries), _map(arch, "kv_heads", sizes["kv_heads"], values)]
    return Step(arch, arch.replace(sizes), (), False, axes={m.axis: m for m in maps})


@operator("layers", "dense")
def dense_layers(arch: Architecture, sizes: Mapping[str, int], weights: ArrayLike, grown: Architecture) -> Step:
    """New layers are sums of all old ones: `weights` [new, old]. LiGO, section 3.2. Raises GrowthError where layers
    are of several kinds, whose weights have no sum."""
    old, new = arch.layers, sizes["layers"]
    if arch.mixed or grown.mixed:
        raise GrowthError("layers: dense makes sums of all layers, and here they are of several kinds")
    coefficient = _matrix("layers", "weights", weights, old, new)
    source = np.broadcast_to(np.arange(old), (new, old))
    m = LayerMap.make(old, source, born=True, coefficient=coefficient)
    return Step(arch, grown, (), False, m)

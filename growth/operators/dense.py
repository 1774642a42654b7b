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


def _matrix(axis: str, what: str, value: ArrayLike, old: int, new: int) -> NDArray[Any]:
    """float64 [new, old]; raises GrowthError for another shape or numbers that are not finite."""
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise GrowthError(f"{axis}: {what} is no matrix of numbers: {value!r:.60}") from None
    if matrix.shape != (new, old):
        raise GrowthError(f"{axis}: {what} must be a matrix of {new} x {old} (new x old), not of shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise GrowthError(f"{axis}: {what} has entries that are not finite")
    return matrix


def _map(axis: str, old: int, new: int, write: ArrayLike, read: ArrayLike) -> AxisMap:
    rows = _matrix(axis, "write", write, old, new)
    mixes = {"write": rows, "read": _matrix(axis, "read", read, old, new), "gain": rows, "shift": rows}
    return AxisMap.make(axis, old, np.full(new, -1)).mixing(mixes, np.arange(new))


@operator("hidden", "dense")
def dense_hidden(arch: Architecture, sizes: Mapping[str, int], write: ArrayLike, read: ArrayLike) -> Step:
    """New writers are `write` [new, old] times the old ones, gains and biases too; new readers take `read` [new, old].
    Wang et al., 2023 (LiGO), section 3.2."""
    new = sizes["hidden"]
    m = _map("hidden", arch.sizes["hidden"], new, write, read)
    return Step(arch, arch.replace({"hidden": new}), (), False, axes={"hidden": m})


@operator("ffn", "dense")
def dense_ffn(arch: Architecture, sizes: Mapping[str, int], write: ArrayLike, read: ArrayLike) -> Step:
    """Neurons mixed by `write` [new, old] on their input side and `read` [new, old] on their output side. LiGO."""
    m = _map("ffn", arch.sizes["ffn"], sizes["ffn"], write, read)
    return Step(arch, arch.replace({"ffn": sizes["ffn"]}), (), False, axes={"ffn": m})


@operator("heads", "dense")
def dense_heads(
    arch: Architecture, sizes: Mapping[str, int], write: ArrayLike, read: ArrayLike, kv_write: ArrayLike | None = None
) -> Step:
    """Heads mixed by `write` [new, old] and `read` [new, old]; `kv_write` for key-value heads, where they are fewer
    (by default `write`; the old ones where their number stays). LiGO."""
    maps = {"heads": _map("heads", arch.sizes["heads"], sizes["heads"], write, read)}
    if "kv_heads" in sizes:
        groups = arch.sizes["kv_heads"]
        own = np.eye(groups) if groups == sizes["kv_heads"] else write
        kv = own if kv_write is None else kv_write
        maps["kv_heads"] = _map("kv_heads", arch.sizes["kv_heads"], sizes["kv_heads"], kv, kv)
    return Step(arch, arch.replace(sizes), (), False, axes=maps)


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

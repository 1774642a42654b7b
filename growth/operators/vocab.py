"""More vocabulary: rows appended to the embedding and to the head.

All preserve the logits of the old ids; the new ids change the softmax unless they are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.operators.width import appended
from growth.step import Step


def _step(arch: Architecture, new: int, m: AxisMap) -> Step:
    return Step(arch, arch.replace({"vocab": new}), (), True, axes={"vocab": m})


@operator("vocab", "random")
def random_rows(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New rows as in a fresh model."""
    old, new = arch.sizes["vocab"], sizes["vocab"]
    return _step(arch, new, AxisMap.make("vocab", old, appended(old, new)))


@operator("vocab", "drop", shrinks=True)
def drop_rows(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """Fewer rows: the first ones stay. The logits of their ids are the same."""
    old, new = arch.sizes["vocab"], sizes["vocab"]
    return _step(arch, new, AxisMap.make("vocab", old, np.arange(new)))


@operator("vocab", "zero")
def zero_rows(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New rows zero, in the embedding and in the head."""
    old, new = arch.sizes["vocab"], sizes["vocab"]
    return _step(arch, new, AxisMap.make("vocab", old, appended(old, new), zero=("read", "write", "shift")))


@operator("vocab", "mean")
def mean_rows(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New rows the mean of all old rows (Hewitt, 2021, "Initializing new word embeddings for pretrained language
    models", without the noise)."""
    old, new = arch.sizes["vocab"], sizes["vocab"]
    mean = np.full((1, old), 1.0 / old)
    mix = np.where(np.arange(new) < old, -1, 0)
    m = AxisMap.make("vocab", old, appended(old, new)).mixing({"write": mean, "read": mean}, mix)
    return _step(arch, new, m)


@operator("vocab", "pieces")
def piece_rows(arch: Architecture, sizes: Mapping[str, int], pieces: Sequence[Sequence[int]] | None) -> Step:
    """A new row is the mean of the rows of the old pieces that its token was written with.

    `pieces` holds, for each new id in order, the old ids that spell it. Raises GrowthError when they are missing,
    too many or too few, or name an id that is not old.
    """
    old, new = arch.sizes["vocab"], sizes["vocab"]
    if pieces is None:
        raise GrowthError(
            f"vocab: {old} to {new}: pieces (the default) needs the old pieces of every new token; give them, or "
            "choose mean, zero or random"
        )
    if len(pieces) != new - old:
        raise GrowthError(f"vocab: {old} to {new} needs the pieces of {new - old} new tokens, not of {len(pieces)}")
    if any(len(p) == 0 for p in pieces):
        raise GrowthError(f"vocab: {old} to {new}: a new token has no pieces")
    if wrong := [i for p in pieces for i in p if not 0 <= i < old]:
        raise GrowthError(f"vocab: {old} to {new}: piece {wrong[0]} of a new token is not one of the {old} old ones")
    return _step(arch, new, _sums(old, pieces))


def _sums(old: int, parts: Sequence[Sequence[int]]) -> AxisMap:
    """The old rows and, for each part, the mean of the rows that it names."""
    width = max((len(p) for p in parts), default=1)
    source = np.full((old + len(parts), width), -1)
    factor = np.ones(source.shape)
    source[:old, 0] = np.arange(old)
    for row, part in enumerate(parts, old):
        source[row, : len(part)] = part
        factor[row] = 1.0 / len(part)
    born = np.arange(len(source)) >= old
    return AxisMap.make("vocab", old, source, {"write": factor, "read": factor, "shift": factor}, born=born)

"""Wider: operators on the hidden size and the feed-forward size."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from growth.architecture import Architecture
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.step import Step


def appended(old: int, new: int) -> np.ndarray:
    """The old indices, then new ones without a source."""
    return np.where(np.arange(new) < old, np.arange(new), -1)


@operator("hidden", "zero")
def zero_hidden(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New residual channels that nothing writes yet (new rows of writers zero) and that readers read at random.

    The mean square of a padded vector is d/D of what it was, so RMSNorm's gain takes sqrt(d/D) and its epsilon d/D:
    exact (the gain alone is not). After Chen et al., 2016 (Net2Net) and Gesmundo and Maile, 2023, "Composable
    function-preserving expansions", section 3.6.
    """
    d, new = arch.sizes["hidden"], sizes["hidden"]
    m = AxisMap.make("hidden", d, appended(d, new), gain=sqrt(d / new), zero=("write",))
    grown = arch.replace({"hidden": new}, {"norm_eps": arch.scalars["norm_eps"] * d / new})
    return Step(arch, grown, (), arch.table.norm == "rms", axes={"hidden": m})


@operator("ffn", "zero")
def zero_ffn(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New neurons with random inputs (gate and up) whose output column (down) is zero: exact, and trainable at once.
    Gesmundo and Maile, 2023, section 3.1."""
    m = AxisMap.make("ffn", arch.sizes["ffn"], appended(arch.sizes["ffn"], sizes["ffn"]), zero=("read",))
    return Step(arch, arch.replace({"ffn": sizes["ffn"]}), (), True, axes={"ffn": m})

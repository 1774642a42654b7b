"""Longer sequences where positions are learned rows."""

from __future__ import annotations

from collections.abc import Mapping

from growth.architecture import Architecture
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.operators.width import appended
from growth.step import Step


@operator("positions", "random")
def random_positions(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New position rows as in a fresh model; exact for sequences of up to the old length (BERT's own recipe, Devlin
    et al., 2019, appendix A.2: 128 positions first, then 512)."""
    old, new = arch.sizes["positions"], sizes["positions"]
    m = AxisMap.make("positions", old, appended(old, new))
    return Step(arch, arch.replace({"positions": new}), (), True, axes={"positions": m})

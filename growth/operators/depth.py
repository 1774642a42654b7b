"""Deeper: operators on the layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from growth.architecture import Architecture
from growth.maps import LayerMap
from growth.operators.registry import operator
from growth.step import Step


@operator("layers", "identity")
def identity_layers(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New layers spread evenly between the old ones, each a copy of the layer before it with a zero branch
    (o_proj = down_proj = 0), hence the identity: exact. Wu et al., 2024, "LLaMA Pro", section 3.2."""
    old, new = arch.layers, sizes["layers"]
    place = np.arange(old) * new // max(old, 1)  # of each old layer among the new ones
    is_old = np.isin(np.arange(new), place)
    source = np.cumsum(is_old) - 1
    m = LayerMap.make(old, source, born=~is_old, zero_branch=~is_old)
    return Step(arch, arch.replace({"layers": new}), (), True, m)

"""More attention heads and more key-value groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from growth.architecture import Architecture
from growth.errors import GrowthError
from growth.maps import AxisMap
from growth.operators.registry import operator
from growth.step import Step


@operator("heads", "zero")
def zero_heads(arch: Architecture, sizes: Mapping[str, int]) -> Step:
    """New heads with random queries, keys and values whose output columns (o_proj) are zero: exact.

    Under grouped-query attention every old query head stays with its key-value head: whole new groups are appended,
    new queries join the end of their group, and where a group is to serve fewer queries its key-value head is copied
    to each part (exact; the moments of copies are approximate: their gradients only sum to the old one).
    Gesmundo and Maile, 2023, section 3.3. Raises GrowthError where the queries of a group cannot be split evenly.
    """
    heads, groups = arch.sizes["heads"], arch.sizes["kv_heads"]
    new_heads, new_groups = sizes["heads"], sizes["kv_heads"]
    arch.table.check({**arch.sizes, "heads": new_heads, "kv_heads": new_groups})
    per, new_per = heads // groups, new_heads // new_groups
    parts = 1 if new_per >= per else per // new_per
    if per > new_per * parts or groups * parts > new_groups:
        raise GrowthError(
            f"heads {heads} to {new_heads} with kv_heads {groups} to {new_groups}: groups of {per} queries cannot "
            f"become groups of {new_per}; keep heads / kv_heads at {per}, raise it, or divide it by a whole number "
            f"while kv_heads grows by at least that number"
        )
    old_per = per // parts  # queries of each part that have a source
    group, within = np.divmod(np.arange(new_heads), new_per)
    has_source = (group < groups * parts) & (within < old_per)
    query = np.where(has_source, group * old_per + within, -1)
    kv = np.arange(new_groups)
    kv_source = np.where(kv < groups * parts, kv // parts, -1)
    maps = {"heads": AxisMap.make("heads", heads, query, zero=("read",))}
    if new_groups != groups:
        maps["kv_heads"] = AxisMap.make("kv_heads", groups, kv_source, gradient={"write": 1.0 / parts})
    return Step(arch, arch.replace({"heads": new_heads, "kv_heads": new_groups}), (), True, axes=maps)

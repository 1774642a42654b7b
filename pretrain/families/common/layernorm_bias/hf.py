"""What the configs of GPT-2 and BERT share: what growth's tables can say, and what they cannot."""

import math
from collections.abc import Mapping
from typing import Any

from growth import Architecture, GrowthError
from pretrain.errors import UserError
from pretrain.families.common.hf.values import wholes
from pretrain.runtime.documents import show


def sizes_of(arch: Architecture, model: str, keys: Mapping[str, str]) -> dict[str, int]:
    """The keys of config.json that are sizes. Raises UserError for what transformers' model derives otherwise."""
    s, usual = arch.sizes, arch.sizes["head_dim"] ** -0.5
    if s["heads"] * s["head_dim"] != s["hidden"]:
        raise UserError(
            f"transformers' {model} cannot express this model: its heads are {s['heads']} x {s['head_dim']} wide, and "
            f"theirs always add up to the hidden size, {s['hidden']}"
        )
    scale = arch.scalars["softmax_scale"]
    if not math.isclose(scale, usual, rel_tol=1e-12):
        raise UserError(
            f"transformers' {model} cannot express this model: its softmax scale is {scale:g}, and theirs is always "
            f"head_dim ** -0.5 = {usual:g}"
        )
    return {key: s[axis] for axis, key in keys.items()}


def architecture_of(
    family: str,
    imported: Mapping[str, Any],
    where: str,
    keys: Mapping[str, str],
    norm_eps: float,
    fixed: Mapping[str, tuple[Any, ...]],
    constant: Mapping[str, int],
) -> Architecture:
    """The architecture of a config.json. fixed: key -> the values that the family can have, the default first.

    Raises UserError naming what cannot be taken over.
    """
    given = wholes(imported, list(keys.values()), where)
    other = [key for key, values in fixed.items() if imported.get(key, values[0]) not in values]
    if other:
        odd = ", ".join(f"{key} = {show(imported[key])}" for key in other)
        raise UserError(f"{where}: {odd}: Cambium's {family} has no such thing, so this model cannot be imported")
    sizes = {axis: given[key] for axis, key in keys.items()} | dict(constant)
    if sizes["hidden"] % sizes["heads"]:
        raise UserError(f"{where}: {sizes['hidden']} channels cannot be divided into {sizes['heads']} heads")
    sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
    try:
        return Architecture(family, sizes, {"norm_eps": norm_eps})
    except GrowthError as error:
        raise UserError(f"{where}: {error}") from error

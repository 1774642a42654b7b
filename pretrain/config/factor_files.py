"""Learned growth: factors in a file that a stage's `grow` names, as tools/learn_growth.py makes it.

    grow: {hidden: {operator: dense, factors: factors/wide.safetensors}, ffn: {operator: dense, factors: ...}}

The file holds one float32 matrix [new, old] for each option of `dense`, such as `hidden.write`. The plan of the event
carries the matrices themselves, and so does every checkpoint after it: once a stage has begun, the file may go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from growth import Architecture
from growth.operators import OPERATORS
from pretrain.errors import UserError
from pretrain.runtime.documents import one_line
from pretrain.runtime.files import make_folder, write_file

OPTION = "factors"


def write(path: Path, policy: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> None:
    """Store the matrices of a policy that growth.learn has found; `about` is for people."""
    tensors = {
        f"{key}.{option}": torch.from_numpy(np.asarray(matrix)).float().contiguous()
        for key, options in policy.items()
        for option, matrix in options.items()
        if option != "operator"
    }
    make_folder(path.absolute().parent)
    write_file(path, save(tensors, dict(about)))


def filled(policy: Mapping[str, Any]) -> dict[str, Any]:
    """A `grow` policy with the matrices of its files in place of their names.

    Raises UserError for a file that is not there, is no safetensors file, or holds nothing for a key.
    """
    return {key: _read(key, value) if _names_a_file(key, value) else value for key, value in policy.items()}


def stood_in(policy: Mapping[str, Any], old: Architecture, new: Architecture) -> dict[str, Any]:
    """A policy with zeros in place of its files, which may not be there yet: enough to check everything else."""
    return {key: _zeros(key, value, old, new) if _names_a_file(key, value) else value for key, value in policy.items()}


def _names_a_file(key: str, value: Any) -> bool:
    has_dense = "dense" in OPERATORS.get(key, {})
    return has_dense and isinstance(value, Mapping) and value.get("operator") == "dense" and OPTION in value


def _read(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(str(value[OPTION]))
    if not path.is_file():
        raise UserError(
            f"grow.{key}.{OPTION}: {path} is not there: learn the factors first, when the stage before has finished, "
            "with python tools/learn_growth.py (see its --help)"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = one_line(str(error))
        raise UserError(f"grow.{key}.{OPTION}: {path} is no safetensors file that can be read ({reason})") from error
    for name, matrix in tensors.items():
        if problem := _problem(name, matrix):
            raise UserError(f"grow.{key}.{OPTION}: {path}: {one_line(name)} {problem}")
    matrices = {
        name.partition(".")[2]: m.float().numpy() for name, m in tensors.items() if name.partition(".")[0] == key
    }
    if not matrices:
        keys = ", ".join(sorted({name.partition(".")[0] for name in tensors}))
        raise UserError(f"grow.{key}.{OPTION}: {path} has factors of {keys or 'nothing'}, none of {key}")
    return {**{k: v for k, v in value.items() if k != OPTION}, **matrices}


def _problem(name: str, matrix: torch.Tensor) -> str:
    """What is wrong with an entry of a file, in words; empty if nothing is."""
    if not re.fullmatch(r"\w+\.\w+", name):
        return "is no name of factors, such as hidden.write"
    if not matrix.is_floating_point() or matrix.dim() != 2:
        kind = str(matrix.dtype).removeprefix("torch.")
        return f"is {kind} of shape {tuple(matrix.shape)}: factors are a matrix of floats"
    return "" if matrix.float().isfinite().all() else "has factors that are NaN or infinite"


def _zeros(key: str, value: Mapping[str, Any], old: Architecture, new: Architecture) -> dict[str, Any]:
    axes = {"weights": "layers"} if key == "layers" else {"write": key, "read": key}
    if key == "heads":
        kv = "kv_heads" if "kv_heads" in new.sizes else "heads"
        axes = {"query": key, "key": kv, "value": kv, "read": key}
    options = {k: v for k, v in value.items() if k != OPTION}
    return {**options, **{o: np.zeros((new.sizes[axis], old.sizes[axis])) for o, axis in axes.items()}}

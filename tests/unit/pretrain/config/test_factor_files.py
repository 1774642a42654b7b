"""Files of learned factors, as tools/learn_growth.py and strangers write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import growth
from growth import Architecture
from pretrain.config import factor_files
from pretrain.errors import UserError
from pretrain.runtime import progress_files
from tests import mutations

OLD = Architecture("gpt2", {"vocab": 6, "positions": 4, "hidden": 4, "layers": 1, "heads": 2, "head_dim": 2, "ffn": 8})
NEW = OLD.replace({"ffn": 12})
POLICY = {"ffn": {"write": np.ones((12, 8)), "read": np.ones((12, 8))}}


def grown(path: Path) -> None:
    """A plan with the factors of a file."""
    policy = factor_files.filled({"ffn": {"operator": "dense", "factors": str(path)}})
    growth.between(OLD, NEW, policy, seed=0, init_std=0.02)


def test_round_trip(tmp_path: Path) -> None:
    factor_files.write(tmp_path / "f.safetensors", POLICY, {"stage": "wide"})
    grown(tmp_path / "f.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_factors_too(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({f"ffn.{name}": torch.ones(12, 8, dtype=dtype) for name in ("write", "read")}, path)
    grown(path)
    found = factor_files.filled({"ffn": {"operator": "dense", "factors": str(path)}})
    assert found["ffn"]["write"].dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"ffn": torch.ones(12, 8)}, "ffn is no name of factors"),
        ({"ffn.write.x": torch.ones(12, 8)}, "is no name of factors"),
        ({"a\nb": torch.ones(12, 8)}, r"a\nb is no name of factors"),
        ({"ffn.write": torch.ones(12, 8, dtype=torch.int64)}, "is int64 of shape (12, 8)"),
        ({"ffn.write": torch.ones(12)}, "is float32 of shape (12,)"),
        ({"ffn.write": torch.full((12, 8), torch.nan)}, "factors that are NaN or infinite"),
        ({"hidden.write": torch.ones(12, 8)}, "factors of hidden, none of ffn"),
        ({}, "factors of nothing, none of ffn"),
    ],
)
def test_refused(tensors: dict[str, torch.Tensor], why: str, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(save(tensors))
    with pytest.raises(UserError) as error:
        grown(path)
    assert why in str(error.value)
    assert str(path) in str(error.value)


def headers(data: bytes, seed: int) -> bytes:
    """A mutation of the header of a safetensors file, with the length that it has; a third is of the whole file."""
    if seed % 3 == 0:
        return mutations.of_bytes(data, seed)
    length = int.from_bytes(data[:8], "little")
    document: Any = json.loads(data[8 : 8 + length])
    header = mutations.of_json(document, seed)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def fuzz(folder: Path, seeds: range) -> None:
    path = folder / "f.safetensors"
    factor_files.write(path, POLICY, {"stage": "wide"})
    data = path.read_bytes()
    for seed in seeds:
        path.write_bytes(headers(data, seed))
        mutations.refused(lambda: grown(path), seed)
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_files_of_others(tmp_path: Path) -> None:
    fuzz(tmp_path, range(200))


@pytest.mark.long
def test_many_files_of_others(tmp_path: Path) -> None:
    fuzz(tmp_path, range(1000, 21_000))


def test_progress_that_is_damaged(tmp_path: Path) -> None:
    """Of learning that was stopped: it is as it was, or refused with what to do."""
    path = tmp_path / "p.safetensors"
    assert progress_files.read(path) is None
    progress_files.write(path, {"x": torch.ones(2)}, {"steps": 3})
    assert progress_files.read(path)[1] == {"steps": 3}  # type: ignore[index]
    data = path.read_bytes()
    for seed in range(150):
        path.write_bytes(headers(data, seed))
        mutations.refused(lambda: progress_files.read(path), seed)

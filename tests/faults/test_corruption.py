"""Damage of every kind: it is detected and named (file, block, tensor), and an older checkpoint is loaded instead."""

import shutil
from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, CorruptCheckpoint, Reader, find, restore, step_folder, verify_all
from pretrain.checkpoint.manifest import MANIFEST
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, flip, state

SHAPES = {"a": (600, 700), "b": (5,)}
FILE = "weight-00000.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Steps 1 and 2, each of its own content."""
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))
    return tmp_path / "checkpoints"


def load(reader: Reader) -> None:
    """Loads everything and compares it with what was saved."""
    for kind, tensors in state(SHAPES, reader.manifest.step).items():
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)


@pytest.mark.parametrize("kind", ["weight", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("byte", [3, 90, 1_100_000, -1])
def test_a_flipped_bit_is_named_and_skipped(root: Path, kind: str, byte: int) -> None:
    path = step_folder(root, 2) / f"{kind}-00000.safetensors"
    byte %= path.stat().st_size
    flip(path, byte)
    block = byte >> 20
    problems = verify_all(path.parent)
    assert len(problems) == 1
    assert f"{path.name}, block {block}" in problems[0]
    assert f"{kind} of a" in problems[0]
    found = restore(root, load)
    assert found.path == step_folder(root, 1)
    assert len(found.skipped) == 1
    assert found.skipped[0][0] == path.parent
    assert f"{path.name}, block {block}" in found.skipped[0][1]
    assert f"{kind} of " in found.skipped[0][1]


@pytest.mark.parametrize("cut", [0, 7, 2000, 1 << 20])
def test_a_truncated_file(root: Path, cut: int) -> None:
    path = step_folder(root, 2) / FILE
    with open(path, "r+b") as file:
        file.truncate(cut)
    found = find(root)
    assert found.path == step_folder(root, 1)
    assert FILE in found.skipped[0][1]
    assert f"{cut} bytes, and should have" in found.skipped[0][1]
    assert len(verify_all(path.parent)) == 1
    with pytest.raises(CorruptCheckpoint, match=f"{FILE}.*{cut} bytes"), Reader(path.parent) as reader:
        load(reader)


def test_a_missing_file(root: Path) -> None:
    (step_folder(root, 2) / FILE).unlink()
    found = find(root)
    assert found.path == step_folder(root, 1)
    assert FILE in found.skipped[0][1]
    assert "No such file" in verify_all(step_folder(root, 2))[0]
    with pytest.raises(CorruptCheckpoint, match=FILE), Reader(step_folder(root, 2)) as reader:
        load(reader)


def test_no_manifest_and_a_broken_one(root: Path) -> None:
    manifest = step_folder(root, 2) / MANIFEST
    flip(manifest, 100)
    assert "manifest" in find(root).skipped[0][1]
    manifest.unlink()
    found = find(root)
    assert found.path == step_folder(root, 1)
    assert "no manifest.json" in found.skipped[0][1]


def test_the_manifest_of_another_step(root: Path) -> None:
    shutil.copy(step_folder(root, 1) / MANIFEST, step_folder(root, 2) / MANIFEST)
    found = find(root)
    assert found.path == step_folder(root, 1)
    assert "of step 1, so of another checkpoint" in found.skipped[0][1]


def test_the_manifest_of_another_run(root: Path, tmp_path: Path) -> None:
    """Same step, same layout, so same sizes: the blocks tell."""
    with Checkpointer(tmp_path / "other") as checkpointer:
        checkpointer.save(2, entries(state(SHAPES, 99)), fields_of(SHAPES, 2))
    shutil.copy(step_folder(tmp_path / "other", 2) / MANIFEST, step_folder(root, 2) / MANIFEST)
    found = restore(root, load)
    assert found.path == step_folder(root, 1)
    assert f"{FILE}, block 0" in found.skipped[0][1]

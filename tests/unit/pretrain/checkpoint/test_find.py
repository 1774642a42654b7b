import json
import shutil
from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, CorruptCheckpoint, Reader, find, restore, step_folder, verify_all
from pretrain.checkpoint.manifest import MANIFEST, canonical
from pretrain.errors import UserError
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state

SHAPES = {"a": (600, 700), "b": (5,)}
FILE = "weight-00000.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Steps 1 and 2, each of its own content."""
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))
    return tmp_path / "checkpoints"


def flip(path: Path, byte: int) -> None:
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 4]))


def load(reader: Reader) -> None:
    """Loads everything and compares it with what was saved."""
    for kind, tensors in state(SHAPES, reader.manifest.step).items():
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)


def test_the_newest(root: Path) -> None:
    found = find(root)
    assert found.path == step_folder(root, 2)
    assert found.skipped == ()
    assert restore(root, load).path == found.path
    assert verify_all(step_folder(root, 2)) == []


def test_nothing_there(tmp_path: Path) -> None:
    assert find(tmp_path / "none").path is None
    assert restore(tmp_path, load).path is None


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


def test_a_newer_format_is_no_reason_to_go_back(root: Path) -> None:
    path = step_folder(root, 2) / MANIFEST
    path.write_bytes(canonical({**json.loads(path.read_bytes()), "format_version": 2}))
    with pytest.raises(UserError, match="update Cambium"):
        find(root)


def test_a_part_that_no_file_holds(root: Path) -> None:
    reader = Reader(step_folder(root, 2))
    boxes = dict(reader.manifest.tensors["a"].boxes)
    boxes["weight"] = ()
    reader.manifest.tensors["a"].boxes.update(boxes)  # type: ignore[attr-defined]
    with pytest.raises(CorruptCheckpoint, match=r"weight a .* are in no file"):
        reader.read("weight", "a", Box((1, 1), (2, 2)))


def test_all_bad_never_starts_from_scratch(root: Path) -> None:
    for step in (1, 2):
        flip(step_folder(root, step) / FILE, 5000)
    with pytest.raises(UserError, match="none of its checkpoints can be loaded") as error:
        restore(root, load)
    assert "step-00000001" in str(error.value)
    assert "step-00000002" in str(error.value)


def test_other_failures_of_a_load_are_not_taken_for_corruption(root: Path) -> None:
    def broken(reader: Reader) -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        restore(root, broken)

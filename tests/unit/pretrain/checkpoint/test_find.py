import json
from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, CorruptCheckpoint, Reader, find, restore, step_folder, verify_all
from pretrain.checkpoint.manifest import FORMAT_VERSION, MANIFEST, canonical
from pretrain.errors import UserError
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


def test_the_newest(root: Path) -> None:
    found = find(root)
    assert found.path == step_folder(root, 2)
    assert found.skipped == ()
    assert restore(root, load).path == found.path
    assert restore(root, lambda reader: reader.manifest.step).loaded == 2
    assert verify_all(step_folder(root, 2)) == []


def test_nothing_there(tmp_path: Path) -> None:
    assert find(tmp_path / "none").path is None
    assert restore(tmp_path, load).path is None


def test_a_newer_format_is_no_reason_to_go_back(root: Path) -> None:
    path = step_folder(root, 2) / MANIFEST
    path.write_bytes(canonical({**json.loads(path.read_bytes()), "format_version": FORMAT_VERSION + 1}))
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

"""Two runs that write one folder: the second is refused, on all of its ranks, and the first goes on."""

from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, restore, step_folder, verify_all, write_checkpoint
from pretrain.errors import UserError
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state
from tests.unit.pretrain.checkpoint.ranks import run_ranks

SHAPES = {"a": (40, 30), "b": (5,)}


def _checkpointer(rank: int, root: Path) -> str:
    try:
        Checkpointer(root)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_second_run(tmp_path: Path, asynchronous: bool) -> None:
    root = tmp_path / "c"
    with Checkpointer(root, asynchronous=asynchronous) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES, 1))
        messages = run_ranks(2, _checkpointer, tmp_path / "store", root)
        assert messages[0] == messages[1]
        assert "Two runs must not write one folder" in messages[0]
        assert str(root) in messages[0]
        checkpointer.wait()
        checkpointer.save(2, entries(state(SHAPES, 2)), fields_of(SHAPES, 2))
        checkpointer.wait()
    assert restore(root, lambda reader: None).path == step_folder(root, 2)
    assert run_ranks(1, _checkpointer, tmp_path / "after", root) == [""]


def _offline(rank: int, path: Path) -> str:
    try:
        write_checkpoint(path, 0, ["weight"], lambda kind, name, box: torch.zeros(box.shape), fields_of(SHAPES), {})
    except UserError as error:
        return str(error)
    return ""


def _told(tmp_path: Path, path: Path) -> list[str]:
    """What another process that writes `path` offline at this moment is told."""
    return run_ranks(1, _offline, tmp_path / "another", path)


def test_a_second_offline_write(tmp_path: Path) -> None:
    """Outside of a folder of checkpoints every name has its own lock."""
    messages: list[str] = []

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        if not messages:
            messages.extend(_told(tmp_path, tmp_path / "new"))
            assert run_ranks(1, _offline, tmp_path / "other", tmp_path / "beside") == [""]
        return torch.zeros(box.shape)

    write_checkpoint(tmp_path / "new", 0, ["weight"], read, fields_of(SHAPES), {})
    assert all("Two runs must not write one folder" in message for message in messages)
    assert verify_all(tmp_path / "new") == []


def test_a_run_while_its_stage_is_grown_offline(tmp_path: Path) -> None:
    """The stage's folder of checkpoints has one lock, whoever writes."""
    root = tmp_path / "c"
    messages: list[str] = []

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        if not messages:
            messages.extend(run_ranks(2, _checkpointer, tmp_path / "store", root))
            messages.extend(_told(tmp_path, step_folder(root, 0)))
        return torch.zeros(box.shape)

    write_checkpoint(step_folder(root, 0), 0, ["weight"], read, fields_of(SHAPES), {})
    assert all("Two runs must not write one folder" in text and str(root) in text for text in messages)
    assert verify_all(step_folder(root, 0)) == []
    assert run_ranks(1, _checkpointer, tmp_path / "after", root) == [""]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stage_is_grown_offline_while_it_runs(tmp_path: Path, asynchronous: bool) -> None:
    root = tmp_path / "c"
    with Checkpointer(root, asynchronous=asynchronous) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES, 1))
        messages = _told(tmp_path, step_folder(root, 0))
        assert all("Two runs must not write one folder" in message for message in messages)
        checkpointer.wait()
    assert sorted(p.name for p in root.iterdir()) == [".lock", "step-00000001"]
    assert verify_all(step_folder(root, 1)) == []

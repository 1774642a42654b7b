"""Two runs that write one folder: the second is refused, on all of its ranks, and the first goes on."""

from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import Checkpointer, Lock, restore, step_folder, write_checkpoint
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


def test_a_second_offline_write(tmp_path: Path) -> None:
    work = tmp_path / ".new.progress"
    work.mkdir()
    lock = Lock(work / "lock")
    messages = run_ranks(2, _offline, tmp_path / "store", tmp_path / "new")
    assert messages[0] == messages[1]
    assert "Two runs must not write one folder" in messages[0]
    lock.release()
    assert run_ranks(1, _offline, tmp_path / "after", tmp_path / "new") == [""]

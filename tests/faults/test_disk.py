"""A full disk, a read-only one, a file that may not grow: named on every rank, and nothing good is lost."""

import os
import resource
import tempfile
from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import KINDS, Checkpointer, Reader, restore, step_folder, write_checkpoint
from pretrain.errors import UserError
from tests.faults.conftest import Mount
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state
from tests.unit.pretrain.checkpoint.ranks import run_ranks

SHAPES = {"a": (300, 500), "b": (7,)}  # 1.8 MB with moments
ROOM = 1_900_000
NOBODY = 65534


def load(reader: Reader) -> None:
    for kind, tensors in state(SHAPES, reader.manifest.step).items():
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)


def save(checkpointer: Checkpointer, step: int) -> None:
    checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))
    checkpointer.wait()


def leave(folder: Path, room: int) -> Path:
    """Fills a disk but for `room` bytes."""
    stat = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(b"\0" * max(0, stat.f_bavail * stat.f_frsize - room))
    return filler


@pytest.mark.parametrize("asynchronous", [False, True], ids=["save", "async-save"])
def test_full_disk_during_a_save(small_disk: tuple[Path, Mount], asynchronous: bool) -> None:
    folder, _ = small_disk
    failures = 0
    with Checkpointer(folder / "c", asynchronous=asynchronous) as checkpointer:
        save(checkpointer, 1)
        for room in range(0, ROOM, ROOM // 30):  # it is full in any of the files, the manifest included
            filler = leave(folder, room)
            message = ""
            try:
                save(checkpointer, 2)
            except UserError as error:
                message = str(error)
            newest = 1 if message else 2
            assert restore(folder / "c", load).path == step_folder(folder / "c", newest)
            assert not list((folder / "c").glob(".*.partial"))
            filler.unlink()
            if not message:
                break
            failures += 1
            assert "step 2 was not saved" in message
            assert "step-00000001" in message
            assert "No space left on device" in message
        save(checkpointer, 3)
    assert failures > 20
    assert restore(folder / "c", load).path == step_folder(folder / "c", 3)


def _two_ranks(rank: int, root: Path) -> str:
    shard = {"a": [Box((0, 0), (50, 500)), Box((50, 0), (300, 500))][rank : rank + 1], "b": [Box.whole((7,))][rank:]}
    with Checkpointer(root) as checkpointer:
        try:
            checkpointer.save(2, entries(state(SHAPES, 2), shard), fields_of(SHAPES, 2))
        except UserError as error:
            return str(error)
    return ""


def test_full_disk_for_one_of_two_ranks(small_disk: tuple[Path, Mount], tmp_path: Path) -> None:
    folder, _ = small_disk
    with Checkpointer(folder / "c") as checkpointer:
        save(checkpointer, 1)
    leave(folder, 900_000)
    first, second = run_ranks(2, _two_ranks, tmp_path / "store", folder / "c")
    assert first == second
    assert "No space left on device" in first
    assert "rank " in first
    assert restore(folder / "c", load).path == step_folder(folder / "c", 1)


def test_full_disk_during_an_offline_write(small_disk: tuple[Path, Mount]) -> None:
    folder, _ = small_disk
    content = state(SHAPES, 1)
    asked = []

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        asked.append((kind, name))
        return content[kind][name][box.slices()]

    filler = leave(folder, ROOM // 2)
    with pytest.raises(UserError, match=r"No space left on device\. Run it again"):
        write_checkpoint(folder / "new", 1, list(KINDS), read, fields_of(SHAPES, 1), {})
    filler.unlink()
    asked.clear()
    write_checkpoint(folder / "new", 1, list(KINDS), read, fields_of(SHAPES, 1), {})
    assert ("weight", "a") not in asked  # its file was finished
    with Reader(folder / "new") as reader:
        load(reader)


def test_a_read_only_disk(small_disk: tuple[Path, Mount]) -> None:
    folder, mount = small_disk
    with Checkpointer(folder / "c") as checkpointer:
        save(checkpointer, 1)
    mount("ro")
    assert restore(folder / "c", load).path == step_folder(folder / "c", 1)
    with pytest.raises(UserError, match=r"c: checkpoints cannot be written here \(Read-only file system\)"):
        Checkpointer(folder / "c")
    with pytest.raises(UserError, match="Read-only file system"):
        write_checkpoint(folder / "new", 1, ["weight"], lambda *_: torch.zeros(()), fields_of({"x": ()}), {})
    mount("rw")
    with Checkpointer(folder / "c") as checkpointer:
        save(checkpointer, 2)


def _without_permission(rank: int, root: Path) -> list[str]:
    if not os.geteuid():
        os.setuid(NOBODY)  # root may write everywhere
    messages = []
    with Checkpointer(root) as checkpointer:
        save(checkpointer, 1)
        root.chmod(0o555)
        try:
            save(checkpointer, 2)
        except UserError as error:
            messages.append(str(error))
        assert restore(root, load).path == step_folder(root, 1)
        root.chmod(0o755)
        save(checkpointer, 2)
    (root / ".lock").chmod(0o444)
    try:
        Checkpointer(root)
    except UserError as error:
        messages.append(str(error))
    return messages


def test_a_folder_without_permission(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        if not os.geteuid():
            os.chown(folder, NOBODY, NOBODY)
        (messages,) = run_ranks(1, _without_permission, tmp_path / "store", Path(folder))
        assert [folder in message and "Permission denied" in message for message in messages] == [True, True]


def _small_files(rank: int, root: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    with Checkpointer(root) as checkpointer:
        try:
            save(checkpointer, 2)
        except UserError as error:
            return str(error)
    return ""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """Needs no root: a write that fails in the middle of a file."""
    with Checkpointer(tmp_path / "c") as checkpointer:
        save(checkpointer, 1)
    (message,) = run_ranks(1, _small_files, tmp_path / "store", tmp_path / "c")
    assert "File too large" in message
    assert restore(tmp_path / "c", load).path == step_folder(tmp_path / "c", 1)

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import KINDS, Manifest, Reader, check, verify_all, write_checkpoint
from pretrain.errors import UserError
from tests.unit.pretrain.checkpoint.boxes import fields_of, flip, state

SHAPES = {"a": (300, 40), "b": (5,), "c": (200, 50), "d": (2500, 1000)}
FILES = sorted(f"{kind}-{i:05}.safetensors" for kind in KINDS for i in range(3))  # a and b; c; d


def reading(asked: list[tuple[str, str, Box]], stop_at: int = -1) -> Callable[[str, str, Box], torch.Tensor]:
    content = state(SHAPES)

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append((kind, name, box))
        return content[kind][name][box.slices()]

    return read


def write(path: Path, read: Callable[[str, str, Box], torch.Tensor], processes: int = 1, **changed: object) -> Manifest:
    identity = {"source": "0123", **changed}
    return write_checkpoint(path, 7, list(KINDS), read, fields_of(SHAPES), identity, processes, shard_bytes=50_000)


def assert_holds(path: Path) -> None:
    assert check(path).step == 7
    assert verify_all(path) == []
    with Reader(path) as reader:
        for kind, tensors in state(SHAPES).items():
            for name, tensor in tensors.items():
                assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)


def test_whole_tensors_in_shards(tmp_path: Path) -> None:
    asked: list[tuple[str, str, Box]] = []
    manifest = write(tmp_path / "new", reading(asked))
    assert sorted(manifest.files) == FILES
    assert all(entry.boxes["weight"][0].box == Box.whole(entry.shape) for entry in manifest.tensors.values())
    assert max(box.numel for _, _, box in asked) <= 1 << 20
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert_holds(tmp_path / "new")


def test_stopped_and_run_again(tmp_path: Path) -> None:
    whole: list[tuple[str, str, Box]] = []
    write(tmp_path / "whole", reading(whole))
    first: list[tuple[str, str, Box]] = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", reading(first, stop_at=11))
    assert not (tmp_path / "new").exists()
    second: list[tuple[str, str, Box]] = []
    write(tmp_path / "new", reading(second))
    assert whole[-1] == second[-1]
    assert ("weight", "a") not in [asked[:2] for asked in second]  # its file was finished
    assert len(whole) <= len(first) + len(second) < 2 * len(whole)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "new" / file.name).read_bytes()


def test_other_work_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", reading([], stop_at=11))
    asked: list[tuple[str, str, Box]] = []
    write(tmp_path / "new", reading(asked), source="4567")
    assert ("weight", "a") in [a[:2] for a in asked]
    assert_holds(tmp_path / "new")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="is there already"):
        write(tmp_path / "new", reading([]))


def test_a_failure_says_how_to_go_on(tmp_path: Path) -> None:
    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"new is not complete\. .*No space left.* Run it again"):
        write(tmp_path / "new", read)
    write(tmp_path / "new", reading([]))
    assert_holds(tmp_path / "new")


def test_processes_share_the_files(tmp_path: Path) -> None:
    write(tmp_path / "one", reading([]))
    asked: list[tuple[str, str, Box]] = []
    write(tmp_path / "three", reading(asked), processes=3)
    assert asked == []  # not by this process
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "three"]


@pytest.mark.parametrize("how", ["fails", "killed"])
def test_processes_stopped_and_run_again(tmp_path: Path, how: str) -> None:
    """Nobody goes on behind the error, and the next run takes over what is finished."""
    content = state(SHAPES)

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        if (kind, name) == ("exp_avg_sq", "d"):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")
        return content[kind][name][box.slices()]

    told = {"fails": "No space left on device", "killed": "one of the processes ended with code -9"}[how]
    with pytest.raises(UserError, match=rf"new is not complete\. .*{told}\. Run it again"):
        write(tmp_path / "new", read, processes=2)
    assert multiprocessing.active_children() == []
    asked: list[tuple[str, str, Box]] = []
    write(tmp_path / "new", reading(asked))
    assert ("weight", "a") not in [a[:2] for a in asked]
    assert_holds(tmp_path / "new")


@pytest.mark.parametrize("damaged", ["weight-00000.safetensors", "weight-00000.safetensors.json", "identity.json"])
def test_damage_between_two_runs_is_found(tmp_path: Path, damaged: str) -> None:
    """A flipped bit in what a stopped run has left: that file is written again, or all of them."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", reading([], stop_at=11))
    (found,) = tmp_path.rglob(damaged)
    flip(found, found.stat().st_size // 2)
    asked: list[tuple[str, str, Box]] = []
    write(tmp_path / "new", reading(asked))
    assert ("weight", "a") in [a[:2] for a in asked]
    assert_holds(tmp_path / "new")

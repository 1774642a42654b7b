from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, Reader, find, step_folder, verify_all
from pretrain.errors import UserError
from pretrain.runtime.comm import Comm
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state
from tests.unit.pretrain.checkpoint.ranks import run_ranks

SHAPES = {"a": (400, 300), "b": (5,)}


def assert_holds(path: Path, seed: int) -> None:
    with Reader(path) as reader:
        for kind, tensors in state(SHAPES, seed).items():
            for name, tensor in tensors.items():
                assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)


def test_training_may_change_everything_after_save(tmp_path: Path) -> None:
    content, fields = state(SHAPES, 1), fields_of(SHAPES, 10)
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        assert checkpointer.save(1, entries(content), fields) is None
        for tensors in content.values():
            for tensor in tensors.values():
                tensor.zero_()
        fields.cursor["byte"] = 11  # type: ignore[index]
        report = checkpointer.wait()
        assert report is not None
        assert report.path == step_folder(tmp_path, 1)
        assert report.write_seconds > 0
        assert report.stall_seconds > 0
        assert checkpointer.wait() is None
        assert checkpointer.poll(True) is None
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert manifest.cursor["byte"] == 10
    assert_holds(report.path, 1)


def test_poll_commits_once_written(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES))
        report = None
        while report is None:
            report = checkpointer.poll(not checkpointer.writing)
        assert find(tmp_path).path == report.path
        assert checkpointer.poll(True) is None


def test_a_second_save_waits_for_the_first(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))
            assert find(tmp_path).path == (step_folder(tmp_path, step - 1) if step > 1 else None)
        reports = [checkpointer.poll(False), checkpointer.wait(), checkpointer.wait()]
        steps = [report.step for report in reports if report]
        assert steps == [1, 2, 3]
    assert_holds(step_folder(tmp_path, 2), 2)
    assert_holds(step_folder(tmp_path, 3), 3)


def test_a_step_in_the_background_can_be_asked_for_again(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES)), fields_of(SHAPES))
        again = checkpointer.save(1, entries(state(SHAPES)), fields_of(SHAPES))
        assert again is not None
        assert again.kept


def test_a_failed_write_is_reported_and_nothing_is_lost(tmp_path: Path) -> None:
    twice = {"weight": [("b", Box.whole((5,)), torch.zeros(5))] * 2}
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES))
        checkpointer.wait()
        assert checkpointer.save(2, twice, fields_of(SHAPES, 2)) is None
        with pytest.raises(
            UserError, match=r"step 2 was not saved.*step-00000001\)\. rank 0: ValueError: b is written"
        ):
            checkpointer.wait()
        checkpointer.save(2, twice, fields_of(SHAPES, 2))
        with pytest.raises(UserError, match="step 2 was not saved"):  # the next save finds it too
            checkpointer.save(3, entries(state(SHAPES, 3)), fields_of(SHAPES, 3))
        assert find(tmp_path).path == step_folder(tmp_path, 1)
        checkpointer.save(3, entries(state(SHAPES, 3)), fields_of(SHAPES, 3))
        checkpointer.wait()
    assert_holds(step_folder(tmp_path, 1), 1)
    assert_holds(step_folder(tmp_path, 3), 3)


def test_a_snapshot_that_fails_is_reported_as_a_write_that_fails(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        wrong = {"weight": [("b", Box.whole((5,)), torch.zeros(5, dtype=torch.float64))]}
        assert checkpointer.save(1, wrong, fields_of(SHAPES)) is None
        with pytest.raises(UserError, match=r"rank 0: ValueError: b .* not torch.float64"):
            checkpointer.poll(not checkpointer.writing)


def test_close_drops_what_nobody_waited_for(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES))
    assert find(tmp_path).path is None
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, entries(state(SHAPES, 1)), fields_of(SHAPES))
    assert verify_all(step_folder(tmp_path, 1)) == []


def _two_ranks(rank: int, root: Path) -> tuple[list[int], str]:
    owned = {"a": [Box((0, 0), (150, 300)), Box((150, 0), (400, 300))][rank : rank + 1], "b": [Box.whole((5,))][rank:]}
    committed = []
    with Checkpointer(root, asynchronous=True) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, entries(state(SHAPES, step), owned), fields_of(SHAPES, step))
            report, comm = None, Comm()
            while report is None:  # the same number of polls on every rank
                report = checkpointer.poll(not comm.largest(checkpointer.writing))
            committed.append(report.step)
        broken = entries(state(SHAPES, 3), owned)
        if rank == 1:
            broken["weight"] *= 2
        checkpointer.save(3, broken, fields_of(SHAPES, 3))
        try:
            checkpointer.wait()
        except UserError as error:
            return committed, str(error)
    return committed, ""


def test_two_ranks_in_the_background(tmp_path: Path) -> None:
    first, second = run_ranks(2, _two_ranks, tmp_path / "store", tmp_path / "c")
    assert first == second
    assert first[0] == [1, 2]
    assert "rank 1: ValueError" in first[1]
    assert_holds(step_folder(tmp_path / "c", 2), 2)

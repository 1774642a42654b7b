from pathlib import Path

import pytest
import torch

from growth.box import Box
from pretrain.checkpoint import Checkpointer, Reader, find, restore, step_folder, verify_all
from pretrain.checkpoint.commit import abandon
from pretrain.checkpoint.find import steps
from pretrain.errors import UserError
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state
from tests.unit.pretrain.checkpoint.ranks import run_ranks

SHAPES = {"a": (40, 30), "b": (5,)}


def save(checkpointer: Checkpointer, step: int, tokens: int | None = None) -> None:
    checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step if tokens is None else tokens))


def test_a_save_reports_and_reads_back(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        report = checkpointer.save(3, entries(state(SHAPES)), fields_of(SHAPES, 77))
    assert report.path == step_folder(tmp_path, 3)
    assert report.bytes == sum(p.stat().st_size for p in report.path.glob("*.safetensors"))
    assert not report.kept
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert manifest.hash == report.hash
    assert manifest.cursor == {"epoch": 0, "document": 2, "byte": 77}


def test_retention(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=2, keep_every=4) as checkpointer:
        for step in range(1, 11):
            save(checkpointer, step)
    assert sorted(p.name for p in tmp_path.glob("*")) == [".lock"] + [f"step-{s:08}" for s in (4, 8, 9, 10)]


def test_retention_spares_the_way_back_and_a_rollback_hides_what_is_after_it(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=1) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step), spare=lambda: [1])
        assert [p.name for p in steps(tmp_path)] == ["step-00000003", "step-00000001"]
        abandon(tmp_path, 1)
        assert find(tmp_path).path == step_folder(tmp_path, 1)
        checkpointer.save(
            3, entries(state(SHAPES, 4)), fields_of(SHAPES, 3), spare=lambda: [1]
        )  # on another way, and no error
        assert not verify_all(step_folder(tmp_path, 3))
        abandon(tmp_path, 0)
        assert find(tmp_path).path is None
    names = sorted(p.name for p in tmp_path.glob(".step-*"))
    assert names == [f".step-0000000{name}" for name in ("1.abandoned-1", "3.abandoned-1", "3.abandoned-2")]


def test_retention_counts_good_checkpoints_only(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        save(checkpointer, 1)
        save(checkpointer, 2)
        (step_folder(tmp_path, 2) / "weight-00000.safetensors").unlink()
        save(checkpointer, 3)
        assert find(tmp_path).path == step_folder(tmp_path, 3)
        assert step_folder(tmp_path, 1).exists()  # the only good one besides step 3
        assert step_folder(tmp_path, 2).exists()  # broken: not ours to remove


def test_a_step_that_is_there_is_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        first = checkpointer.save(1, entries(state(SHAPES)), fields_of(SHAPES))
        again = checkpointer.save(1, entries(state(SHAPES)), fields_of(SHAPES))
        assert again.kept
        assert again.hash == first.hash
        with pytest.raises(UserError, match="of another state"):
            save(checkpointer, 1, tokens=12345)
    manifest = find(tmp_path).manifest
    assert manifest is not None
    assert manifest.hash == first.hash


def test_a_corrupt_one_of_the_same_step_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        path = step_folder(tmp_path, 1) / "exp_avg-00000.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        save(checkpointer, 1)
        assert "is corrupt and kept as .step-00000001.corrupt-1" in caplog.text
        assert f"{path.name}, block 0" in caplog.text
        assert verify_all(step_folder(tmp_path, 1)) == []
        assert (tmp_path / ".step-00000001.corrupt-1" / path.name).read_bytes() == data


def test_leftovers_are_cleaned(tmp_path: Path) -> None:
    for name in (".step-00000001.partial", ".step-00000000.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weight-00000.safetensors").write_bytes(b"half")
    assert find(tmp_path).path is None
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
    assert sorted(p.name for p in tmp_path.glob("*")) == [".lock", "step-00000001"]


def test_boxes_that_do_not_tile_are_not_committed(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        save(checkpointer, 1)
        half = {"weight": [("a", Box((0, 0), (20, 30)), torch.zeros(20, 30)), ("b", Box((0,), (5,)), torch.zeros(5))]}
        with pytest.raises(UserError, match=r"weight a: the boxes hold 600 of the 1200.*") as error:
            checkpointer.save(2, half, fields_of(SHAPES))
        assert str(step_folder(tmp_path, 1)) in str(error.value)
        assert find(tmp_path).path == step_folder(tmp_path, 1)
        assert not list(tmp_path.glob(".*.partial"))
        save(checkpointer, 2)


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep_last"):
        Checkpointer(tmp_path, keep_last=0)


def halves(rank: int) -> dict[str, list[Box]]:
    """Rank 0 has the left columns of a and all of b, rank 1 the right columns."""
    return {"a": [Box((0, 0), (40, 11)), Box((0, 11), (40, 30))][rank : rank + 1], "b": [Box.whole((5,))][rank:]}


def _two_ranks(rank: int, root: Path) -> tuple[str, str, Path | None]:
    content = state(SHAPES)
    with Checkpointer(root) as checkpointer:
        report = checkpointer.save(1, entries(content, halves(rank)), fields_of(SHAPES))
        failure = ""
        broken = entries(content, halves(rank))
        if rank == 1:
            broken["exp_avg"] = [(n, b, t.double()) for n, b, t in broken["exp_avg"]]
        try:
            checkpointer.save(2, broken, fields_of(SHAPES))
        except UserError as error:
            failure = str(error)
        kept = checkpointer.save(1, entries(content, halves(rank)), fields_of(SHAPES))
        assert kept.kept

    def load(reader: Reader) -> None:
        for kind, tensors in content.items():
            for name, tensor in tensors.items():
                box = Box.whole(tensor.shape)
                assert torch.equal(reader.read(kind, name, box), tensor)

    return report.hash, failure, restore(root, load).path


def test_two_ranks_save_fail_and_restore_together(tmp_path: Path) -> None:
    first, second = run_ranks(2, _two_ranks, tmp_path / "store", tmp_path / "c")
    assert first == second
    assert "rank 1: ValueError" in first[1]
    assert "float64" in first[1]
    assert first[2] == step_folder(tmp_path / "c", 1)
    assert len(list(first[2].glob("weight-*.safetensors"))) == 2


def _one_corrupt_rank(rank: int, root: Path) -> tuple[Path | None, tuple[tuple[Path, str], ...]]:
    def load(reader: Reader) -> None:
        name, box = (("a", Box((0, 0), (9, 300))), ("b", Box((0,), (5,))))[rank]
        reader.read("weight", name, box)

    found = restore(root, load)
    return found.path, found.skipped


def test_all_ranks_go_back_when_one_finds_a_bad_block(tmp_path: Path) -> None:
    shapes = {"a": (1000, 300), "b": (5,)}  # b is in the second block, rank 0 reads the first
    with Checkpointer(tmp_path / "c") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, entries(state(shapes, step)), fields_of(shapes, step))
    path = step_folder(tmp_path / "c", 2) / "weight-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    first, second = run_ranks(2, _one_corrupt_rank, tmp_path / "store", tmp_path / "c")
    assert first == second
    assert first[0] == step_folder(tmp_path / "c", 1)
    assert "weight of b" in first[1][0][1]


def test_fields_that_are_no_json_are_named(tmp_path: Path) -> None:
    fields = fields_of(SHAPES)
    fields.progress["seconds"] = float("inf")  # type: ignore[index]
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError, match="progress of the manifest is no JSON"):
        checkpointer.save(1, entries(state(SHAPES)), fields)

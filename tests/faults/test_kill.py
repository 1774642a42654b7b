"""kill -9 at random points: the newest valid checkpoint loads bit for bit, and the next save goes on from there."""

import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from growth.box import Box
from pretrain.checkpoint import KINDS, Checkpointer, Reader, check, find, restore, write_checkpoint
from pretrain.checkpoint.find import steps
from pretrain.errors import UserError
from tests.faults.killing import NEVER, Say, base_seed, run, start
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state

SHAPES = {"a": (300, 500), "b": (7,), "c": ()}
LAST = 4


def load(reader: Reader) -> None:
    """Reads all of a checkpoint and compares it with what its step saved."""
    for kind, tensors in state(SHAPES, reader.manifest.step).items():
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(kind, name, Box.whole(tensor.shape)), tensor)
    assert reader.manifest.progress["tokens"] == reader.manifest.step


def save_steps(root: Path, keep_last: int, asynchronous: bool) -> Callable[[Say], None]:
    """Saves steps 1 to LAST and says each when it is committed."""

    def work(say: Say) -> None:
        with Checkpointer(root, keep_last=keep_last, asynchronous=asynchronous) as checkpointer:
            for step in range(1, LAST + 1):
                saved = checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))
                polled = checkpointer.wait() if step == LAST else checkpointer.poll(not checkpointer.writing)
                for report in (saved, polled):
                    if report:
                        say(str(report.step))

    return work


def seeds(count: int, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> range:
    first = base_seed()
    with capsys.disabled():
        print(f"\n{request.node.name}: {count} kills, CAMBIUM_FAULT_SEED={first}")
    return range(first, first + count)


LONG = [pytest.mark.long, pytest.mark.timeout(7200)]
COUNTS = [20, pytest.param(200, marks=LONG)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("keep_last", "asynchronous"), [(10, False), (10, True), (1, False)], ids=["save", "async-save", "retention"]
)
def test_saves(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    count: int,
    keep_last: int,
    asynchronous: bool,
) -> None:
    _, lines = run(save_steps(tmp_path / "dry", keep_last, asynchronous), NEVER)
    killed = 0
    for seed in seeds(count, capsys, request):
        root = tmp_path / str(seed)
        said, survived = run(save_steps(root, keep_last, asynchronous), kill_at=random.Random(seed).randrange(lines))
        killed += survived < 0
        committed = int(said[-1]) if said else 0
        found = restore(root, load)
        assert found.skipped == (), f"seed {seed}"
        newest = found.manifest.step if found.manifest else 0
        # A commit may be done before it is said; in the background, said a save later.
        assert committed <= newest <= committed + 1 + asynchronous, f"seed {seed}"
        good = [check(path).step for path in steps(root)]
        assert len(good) >= min(newest, keep_last), f"seed {seed}"
        with Checkpointer(root, keep_last=keep_last) as checkpointer:  # the lock went with the process
            checkpointer.save(LAST + 1, entries(state(SHAPES, LAST + 1)), fields_of(SHAPES, LAST + 1))
        assert {p.name for p in root.iterdir()} - {p.name for p in steps(root)} == {".lock"}, f"seed {seed}"
        assert find(root).path == restore(root, load).path
        shutil.rmtree(root)
    assert killed > count // 2


def write_offline(path: Path) -> Callable[[Say], None]:
    content = state(SHAPES, 1)

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return content[kind][name][(*box.slices(), ...)]

    def work(say: Say) -> None:
        try:
            write_checkpoint(path, 1, list(KINDS), read, fields_of(SHAPES, 1), {}, shard_bytes=1000)
            say("complete")
        except UserError as error:
            say(str(error))

    return work


@pytest.mark.parametrize("count", COUNTS)
def test_offline_writes_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, count: int
) -> None:
    whole = tmp_path / "whole"
    _, lines = run(write_offline(whole), NEVER)
    killed = 0
    for seed in seeds(count, capsys, request):
        folder = tmp_path / str(seed)
        folder.mkdir()
        _, survived = run(write_offline(folder / "new"), kill_at=random.Random(seed).randrange(lines))
        killed += survived < 0
        if survived < 0:
            (said,), _ = run(write_offline(folder / "new"))
            assert said == "complete" or "new is there already" in said, f"seed {seed}"
        for file in whole.iterdir():
            assert file.read_bytes() == (folder / "new" / file.name).read_bytes(), f"seed {seed}"
        assert [p.name for p in folder.iterdir()] == ["new"], f"seed {seed}"
        shutil.rmtree(folder)
    assert killed > count // 2


def halves(rank: int) -> dict[str, list[Box]]:
    """Rank 0 has the first rows of a, b and c; rank 1 the other rows of a."""
    first, second = Box((0, 0), (120, 500)), Box((120, 0), (300, 500))
    return {"a": [second], "b": [], "c": []} if rank else {"a": [first], "b": [Box.whole((7,))], "c": [Box.whole(())]}


def save_as(rank: int, root: Path, store: Path) -> Callable[[Say], None]:
    """What `save_steps` does, as one of two ranks."""

    def work(say: Say) -> None:
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
            )
            with Checkpointer(root, keep_last=10) as checkpointer:
                for step in range(1, LAST + 1):
                    checkpointer.save(step, entries(state(SHAPES, step), halves(rank)), fields_of(SHAPES, step))
                    say(str(step))
        except RuntimeError as error:  # gloo's, when the other rank is gone, or was before it joined
            say(f"lost: {error}")

    return work


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=LONG)])
def test_one_of_two_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, count: int
) -> None:
    dry = [start(save_as(rank, tmp_path / "dry", tmp_path / "dry-store"), NEVER) for rank in range(2)]
    lines = [child.join()[1] for child in dry]
    killed = 0
    for seed in seeds(count, capsys, request):
        draw = random.Random(seed)
        victim = draw.randrange(2)
        kill_at = draw.randrange(lines[victim])
        root, store = tmp_path / str(seed), tmp_path / f"{seed}-store"
        children = [start(save_as(rank, root, store), kill_at if rank == victim else None) for rank in range(2)]
        said = [child.join() for child in children]
        killed += said[victim][1] < 0
        assert said[1 - victim][1] >= 0, f"seed {seed}: the other rank did not end by itself"
        committed = max([0, *(int(text) for lines_said, _ in said for text in lines_said if text.isdigit())])
        found = restore(root, load)
        newest = found.manifest.step if found.manifest else 0
        assert committed <= newest <= committed + 1, f"seed {seed}"
        with Checkpointer(root) as checkpointer:
            checkpointer.save(LAST + 1, entries(state(SHAPES, LAST + 1)), fields_of(SHAPES, LAST + 1))
        assert restore(root, load).path == find(root).path
        shutil.rmtree(root)
    assert killed > count // 2

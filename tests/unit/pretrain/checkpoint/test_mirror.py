"""Mirrors at file:// URLs: what is there after each sending, what comes back, and whose it is."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pretrain.checkpoint import Checkpointer, find, step_folder
from pretrain.checkpoint.commit import abandon
from pretrain.checkpoint.locate import locate
from pretrain.checkpoint.mirror import STATE, bring_back, is_empty, send
from pretrain.errors import UserError
from pretrain.runtime import storage
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, flip, state

SHAPES = {"a": (700, 500), "b": (5,)}  # files of several blocks


def commit(folder: Path, *steps: int, seed: int = 0, keep: int = 2, keep_every: int = 0) -> None:
    with Checkpointer(folder / "checkpoints", keep_last=keep, keep_every=keep_every) as checkpointer:
        for step in steps:
            checkpointer.save(step, entries(state(SHAPES, step + seed)), fields_of(SHAPES, step + seed))


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    files = [file for pattern in patterns for file in folder.glob(pattern) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def checkpoints(folder: Path) -> dict[str, bytes]:
    return contents(folder, "checkpoints/step-*/*")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, str]:
    """A stage's folder, its mirror's, and that one's URL."""
    monkeypatch.setattr(storage, "WAIT", 0.0)
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    return tmp_path / "run" / "small", tmp_path / "bucket", f"file://{tmp_path / 'bucket'}"


def test_what_retention_keeps_is_there_and_comes_back(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    """With the records; and DONE, when it is here."""
    folder, bucket, url = place
    for steps in ((1, 2), (3, 4, 5)):
        commit(folder, *steps, keep_every=2)
        (folder / "metrics.jsonl").write_text('{"step": 1}\n' * steps[-1])
        (folder / "events").mkdir(exist_ok=True)
        (folder / "events/x.json").write_text("{}")
        send(folder, url, 2, 2)
        assert checkpoints(bucket) == checkpoints(folder)
    assert sorted(checkpoints(bucket)) == sorted(checkpoints(folder))
    (folder / "DONE").write_text("{}")
    send(folder, url, 2, 2)
    state = json.loads((folder / STATE).read_text())
    assert (state["newest"], state["sending"], state["problem"]) == (5, None, None)
    other = tmp_path / "other" / "small"
    assert is_empty(other)
    assert bring_back(other, url) == step_folder(other / "checkpoints", 5)
    assert checkpoints(other) == {k: v for k, v in checkpoints(folder).items() if "step-00000005" in k}
    records = ("DONE", "*.jsonl", "events/*")
    assert contents(other, *records) == contents(folder, *records)
    before = checkpoints(bucket)
    commit(other, 6)
    send(other, url, 2, 2)  # step 2 and 4 are for ever, though this machine has never had them
    assert before.items() <= checkpoints(bucket).items()


def test_nothing_is_sent_twice(place: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop, what is there and right is left alone, and what is cut off, damaged or another's is replaced."""
    folder, bucket, url = place
    commit(folder, 1)
    send(folder, url, 2, 0)
    expected, sent, one = checkpoints(bucket), [], storage.put
    (path,) = (bucket / "checkpoints").iterdir()

    def put(file: Path, *how: object) -> None:
        sent.append(file.name)
        one(file, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "put", put)
    send(folder, url, 2, 0)
    assert not sent
    (path / "manifest.json").unlink()
    flip(path / "exp_avg-00000.safetensors", 1 << 20)
    with open(path / "weight-00000.safetensors", "r+b") as file:
        file.truncate(1000)
    (path / "weight-00007.safetensors").write_bytes(b"of another layout")
    send(folder, url, 2, 0)
    assert sorted(sent) == ["exp_avg-00000.safetensors", "weight-00000.safetensors"]
    assert checkpoints(bucket) == expected


def test_after_a_way_back_what_was_left_goes(place: tuple[Path, Path, str]) -> None:
    """A step of the same number on the new way takes the place of the old one; what is only not here stays."""
    folder, bucket, url = place
    commit(folder, 1, 2, 3, keep=3)
    send(folder, url, 3, 0)
    abandon(folder / "checkpoints", 1)
    commit(folder, 2, seed=50, keep=3)
    send(folder, url, 3, 0)
    assert checkpoints(bucket) == checkpoints(folder)
    shutil.rmtree(step_folder(folder / "checkpoints", 2))
    send(folder, url, 3, 0)
    assert "checkpoints/step-00000002/manifest.json" in checkpoints(bucket)


def test_a_mirror_is_of_one_run(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    folder, bucket, url = place
    commit(folder, 1)
    send(folder, url, 2, 0)
    before, other = contents(bucket, "**/*"), tmp_path / "other" / "small"
    commit(other, 1, seed=9)
    with pytest.raises(UserError, match="another run"):
        send(other, url, 2, 0)
    assert contents(bucket, "**/*") == before
    assert "another run" in json.loads((other / STATE).read_text())["problem"]
    shutil.rmtree(bucket / "checkpoints")  # it died before there was anything to come back
    send(other, url, 2, 0)
    assert checkpoints(bucket) == checkpoints(other)


def test_what_is_damaged_here_is_not_sent_and_not_passed_off_as_there(place: tuple[Path, Path, str]) -> None:
    folder, bucket, url = place
    commit(folder, 1, 2)
    flip(folder / "checkpoints/step-00000002/exp_avg-00000.safetensors", 1 << 20)
    with pytest.raises(UserError, match="block 1"):
        send(folder, url, 2, 0)
    names = sorted(name for name in checkpoints(bucket) if name.endswith("manifest.json"))
    assert names == ["checkpoints/step-00000001/manifest.json"]


def test_what_is_damaged_there_does_not_come_back(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    """The one before it does, and a disk without room is said."""
    folder, bucket, url = place
    commit(folder, 1, 2)
    send(folder, url, 2, 0)
    other = tmp_path / "other" / "small"
    with pytest.MonkeyPatch.context() as full:
        usage = namedtuple("usage", "free")(1000)
        full.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match="make room"):
            bring_back(other, url)
    flip(bucket / "checkpoints/step-00000002/exp_avg-00000.safetensors", 1 << 20)
    assert bring_back(other, url) == step_folder(other / "checkpoints", 1)
    flip(bucket / "checkpoints/step-00000001/manifest.json", 50)
    with pytest.raises(UserError, match="none of its checkpoints"):
        bring_back(tmp_path / "third" / "small", url)
    assert find(tmp_path / "third" / "small" / "checkpoints").path is None
    assert bring_back(tmp_path / "fourth", f"{url}/nothing") is None


def test_a_path_may_be_a_url(place: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Of a checkpoint, a stage or a run, as a command line turns it into a path."""
    folder, _, url = place
    commit(folder, 1, 2)
    send(folder, f"{url}/run/small", 2, 0)
    commit(tmp_path / "run" / "wide", 5)
    send(tmp_path / "run" / "wide", f"{url}/run/wide", 2, 0)
    (folder / "DONE").write_text("{}")
    send(folder, f"{url}/run/small", 2, 0)
    for where, finished, step in (
        ("run", False, 5),
        ("run", True, 2),
        ("run/small", False, 2),
        ("run/small/checkpoints", False, 2),
        ("run/small/checkpoints/step-00000001", False, 1),
    ):
        path = locate(Path(f"{url}/{where}"), finished)
        assert path.is_relative_to(tmp_path / "cache")
        assert find(path.parent).path is not None
        stage = "wide" if step == 5 else "small"
        assert contents(path, "*") == contents(step_folder(tmp_path / "run" / stage / "checkpoints", step), "*")
    with pytest.raises(UserError, match="no checkpoint there"):
        locate(Path(f"{url}/elsewhere"))


def test_an_upload_that_a_storage_does_not_know_any_more_is_made_again(
    place: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 says that there is no such thing, of one in parts whose end it was asked for twice."""
    folder, bucket, url = place
    one, left = LocalFileSystem.put_file, [FileNotFoundError("NoSuchUpload")]

    def put_file(self: LocalFileSystem, *how: Any, **more: Any) -> None:
        if left:
            raise left.pop()
        one(self, *how, **more)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    commit(folder, 1)
    send(folder, url, 2, 0)
    assert not left
    assert checkpoints(bucket) == checkpoints(folder)

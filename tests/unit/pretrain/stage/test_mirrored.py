"""What a stage does about its mirror: it has it filled beside training, and says what does not work."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpointer, mirror
from pretrain.cli import mirror as command
from pretrain.cli import status, submission
from pretrain.config import Curriculum
from pretrain.errors import UserError
from pretrain.runtime import storage
from pretrain.runtime.files import write_json
from pretrain.stage import mirrored
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state
from tests.unit.small import small_curriculum

SHAPES = {"a": (5,)}


def commit(folder: Path, step: int) -> None:
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(step, entries(state(SHAPES, step)), fields_of(SHAPES, step))


def with_mirror(curriculum: Curriculum, url: str) -> Curriculum:
    stages = [replace(stage, checkpoint=replace(stage.checkpoint, mirror=url)) for stage in curriculum.stages]
    return replace(curriculum, stages=tuple(stages))


def test_it_is_begun_again_after_a_failure_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[str] = []
    ends = iter(("2", "2", "0", "0", "0"))

    def start(folder: Path, base: str) -> subprocess.Popen[bytes]:
        begun.append(next(ends))
        return subprocess.Popen(["bash", "-c", f"exit {begun[-1]}"])

    def news(task: mirrored.Mirroring) -> dict[str, float]:
        assert task._process
        task._process.wait()
        return task.news()

    monkeypatch.setattr(mirrored, "_start", start)
    monkeypatch.setattr(mirrored, "WAIT", 0.0)
    task = mirrored.Mirroring(tmp_path, "s3://bucket")
    assert not begun
    known = {"url": "s3://bucket", "newest": 3, "problem": "no network"}
    write_json(tmp_path / mirror.STATE, {**known, "sending": 6})
    assert task.spared() == set()
    task.begin()
    task.begin()
    assert begun == ["2"]
    assert task.spared() == {6}
    with caplog.at_level(logging.WARNING):
        assert news(task) == {"mirrored_step": 3.0, "mirror_failed": 1.0}
    assert "no network" in caplog.text
    assert task.spared() == set()
    assert task.news() == {}
    assert begun == ["2", "2"]
    task._wait = 1000.0
    assert "mirror_failed" in news(task)
    assert task.news() == {}
    assert begun == ["2", "2"]  # not yet
    task.begin()
    assert news(task) == {"mirrored_step": 3.0}
    task.begin()
    task.begin()  # its process may have looked for the last time before this checkpoint was there
    assert news(task) == news(task) == {"mirrored_step": 3.0}
    assert task.news() == {}
    assert begun == ["2", "2", "0", "0", "0"]


def test_a_failure_at_the_end_is_said_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for code, said in ((1, "is not complete: its process ended with code 1"), (0, "is mirrored")):
        ended = subprocess.Popen(["bash", "-c", f"exit {code}"])
        monkeypatch.setattr(mirrored, "_start", lambda *_, ended=ended: ended)
        with caplog.at_level(logging.INFO):
            mirrored.finish(tmp_path, "s3://bucket")
        assert said in caplog.text


def test_it_is_tried_before_anything_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, read and removed; of another run, not there or without credentials it is refused in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "WAIT", 0.0)
    curriculum = with_mirror(small_curriculum(tmp_path), f"file://{tmp_path / 'bucket'}")
    seed = curriculum.stages[0]
    mirrored.check(curriculum, seed)
    assert not [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]
    folder, other = curriculum.folder / "seed", tmp_path / "other/seed"
    for place in (folder, other):
        commit(place, 1)
    mirror.send(other, mirrored.url_of(seed.checkpoint.mirror, folder), 2, 0)
    with pytest.raises(UserError, match="another run") as raised:
        mirrored.check(curriculum, seed)
    assert len(str(raised.value).splitlines()) == 1

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    (tmp_path / "file").touch()
    blocked = with_mirror(curriculum, f"file://{tmp_path / 'file'}")
    with pytest.raises(UserError, match="6 times now"):
        mirrored.check(blocked, blocked.stages[0])
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.find", refused)
    with pytest.raises(UserError, match=r"check its credentials \(Access Denied\)"):
        mirrored.check(curriculum, seed)

    def without(_: Curriculum, stage: object, *__: object) -> None:
        return None

    monkeypatch.setattr("pretrain.event.plan.check", without)
    monkeypatch.setattr("pretrain.config.load", lambda _: curriculum)
    assert submission.main([str(tmp_path), "--ranks-per-node", "1"]) == 2
    assert "check its credentials" in capsys.readouterr().err


def test_the_status_says_that_it_is_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    curriculum = small_curriculum(tmp_path)
    folder = curriculum.folder / "seed"
    folder.mkdir(parents=True)
    write_json(folder / mirror.STATE, {"url": "s3://b", "sending": None, "newest": 3, "problem": "no network"})
    rows = [status.status_of(curriculum, stage, {}) for stage in curriculum.stages]
    assert status.table(rows).splitlines()[-1] == "the mirror of seed is behind: no network"


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in one line."""
    (tmp_path / "config.yaml").write_text("{}")
    for arguments, said in (
        ([str(tmp_path / "nothing")], "is not the folder of a stage"),
        ([str(tmp_path)], "config.yaml"),
        (["--back", "x.yaml"], "--back needs --stage"),
    ):
        assert command.main(arguments) == 2
        assert said in capsys.readouterr().err

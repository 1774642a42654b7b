"""Mirrors in a storage of S3: processes killed at any request and a network that fails lose nothing.

What is in the mirror after each kill and each fault comes back byte for byte as one of the checkpoints that were
committed, and is never older than what was there before.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint import Checkpointer
from pretrain.checkpoint.find import step_of
from tests.faults.object_storage import BUCKET, FAULTS, KILLS, Proxy, Worker, server
from tests.unit.pretrain.checkpoint.boxes import entries, fields_of, state

SHAPES = {"a": (700, 500), "b": (5,)}  # files of several blocks
LARGE = {"a": (1400, 2000), "b": (5,)}  # of several parts


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with server() as proxy:
        yield proxy


@pytest.fixture(scope="module")
def worker(proxy: Proxy) -> Iterator[Worker]:
    with Worker(proxy) as worker:
        yield worker


@pytest.fixture(autouse=True)
def no_fault(proxy: Proxy) -> Iterator[None]:
    yield
    proxy.fault = lambda number: None


@pytest.fixture
def parts(worker: Worker) -> Iterator[None]:
    """Files go in parts of 5 MiB."""
    worker.parts = True
    yield
    worker.parts = False


class Stage:
    """A stage's folder whose checkpoints are mirrored, and all that it has committed."""

    def __init__(self, folder: Path, worker: Worker, name: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        self.folder, self.worker, self.url, self.shapes = folder, worker, f"s3://{BUCKET}/{name}", shapes
        self.committed: dict[int, dict[str, bytes]] = {}
        self.newest = 0  # step that has been seen in the mirror

    def commit(self) -> None:
        step = len(self.committed) + 1
        with Checkpointer(self.folder / "checkpoints", keep_last=2) as checkpointer:
            checkpointer.save(step, entries(state(self.shapes, step)), fields_of(self.shapes, step))
        path = self.folder / "checkpoints" / f"step-{step:08}"
        self.committed[step] = {file.name: file.read_bytes() for file in path.iterdir()}

    def send(self, kill: tuple[int, str] | None = None) -> tuple[int, str]:
        return self.worker.do("send", self.folder, self.url, kill)

    def bring(self, folder: Path, kill: tuple[int, str] | None = None) -> tuple[int, str]:
        return self.worker.do("bring", folder, self.url, kill)

    def check(self, folder: Path) -> None:
        """What comes back is what was committed, and none that was there has been lost."""
        code, error = self.bring(folder)
        assert code == 0 or (error == "nothing there" and not self.newest), error
        if code == 0:
            (path,) = (folder / "checkpoints").glob("step-*")
            step = step_of(path)
            assert step is not None
            assert {file.name: file.read_bytes() for file in path.iterdir()} == self.committed[step]
            assert step >= self.newest
            self.newest = step
        shutil.rmtree(folder, ignore_errors=True)

    def all_is_there(self, folder: Path) -> None:
        code, error = self.send()
        assert code == 0, error
        self.check(folder)
        assert self.newest == len(self.committed)


def kills(stage: Stage, times: int, other: Path, draw: random.Random) -> int:
    """Kills the sending and the bringing back by turns, at drawn requests; how many of them were killed."""
    killed = 0
    for turn in range(times):
        kill = (draw.randrange(24), draw.choice(KILLS))
        if turn % 3 == 2:
            code, _ = stage.bring(other / "half", kill)
        else:
            stage.commit()
            code, _ = stage.send(kill)
        killed += code == -9
        stage.check(other / "whole")
        if turn % 3 == 2 and stage.newest:
            stage.check(other / "half")  # what a killed one has left is gone on with
    stage.all_is_there(other / "whole")
    return killed


def faults(stage: Stage, times: int, proxy: Proxy, other: Path, draw: random.Random) -> int:
    """Sends and brings back while requests fail, a third of them, each time in other ways; how many did."""
    met: list[str] = []

    def fault(number: int) -> str | None:
        if draw.random() > 1 / 3:
            return None
        met.append(draw.choice(FAULTS))
        return met[-1]

    turn = 0
    while len(met) < times:
        stage.commit()
        proxy.fault = fault
        if turn % 2:
            stage.bring(other / "half")
        else:
            stage.send()
        turn += 1
        proxy.fault = lambda number: None
        stage.check(other / "whole")
    stage.all_is_there(other / "whole")
    return len(met)


def test_a_mirror_in_s3_after_kills(worker: Worker, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "run" / "small", worker, "kills")
    assert kills(stage, 4, tmp_path, random.Random(1)) >= 2


def test_a_mirror_in_s3_behind_a_network_that_fails(proxy: Proxy, worker: Worker, tmp_path: Path) -> None:
    """In every way, one after the other: what fails is tried again, and all is there in the end."""
    stage = Stage(tmp_path / "run" / "small", worker, "faults")
    stage.commit()
    left = list(FAULTS)
    proxy.fault = lambda number: left.pop() if left and number % 2 else None
    code, error = stage.send()
    assert code == 0, error
    assert not left
    stage.check(tmp_path / "whole")
    assert stage.newest == 1


def test_a_network_that_is_gone_is_said(proxy: Proxy, worker: Worker, tmp_path: Path) -> None:
    """In one line; what was there is there still, and the next time all of it is."""
    stage = Stage(tmp_path / "run" / "small", worker, "gone")
    stage.commit()
    assert stage.send()[0] == 0
    stage.commit()
    proxy.fault = lambda number: "503"
    code, error = stage.send()
    assert code == 2
    assert "it cannot be used, 6 times now" in error
    assert len(error.splitlines()) == 1
    proxy.fault = lambda number: None
    stage.check(tmp_path / "whole")
    assert stage.newest == 1
    stage.all_is_there(tmp_path / "whole")


def test_a_corpus_in_s3_behind_a_network_that_fails(proxy: Proxy, worker: Worker, tmp_path: Path) -> None:
    """What is published and read is what it was, though each other request fails, in every way."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "tokens.bin").write_bytes(random.Random(2).randbytes(12_000_000))
    (corpus / "corpus.json").write_text("{}")
    for task in ("publish", "read"):
        left = list(FAULTS)
        proxy.fault = lambda number, left=left: left.pop() if number % 2 and left else None  # type: ignore[misc]
        assert worker.do(task, corpus, f"s3://{BUCKET}/corpus") == (0, "")
    assert not left


def test_the_end_of_an_upload_in_parts_is_not_heard_of(
    proxy: Proxy, worker: Worker, parts: None, tmp_path: Path
) -> None:
    """The server has ended it, and the client gives up waiting for that, twice."""
    stage, left = Stage(tmp_path / "run" / "small", worker, "end", LARGE), ["late"] * 2
    stage.commit()
    proxy.fault = lambda number: left.pop() if left and re.match("POST .*uploadId=", proxy.asked) else None
    assert stage.send() == (0, "")
    assert not left
    stage.check(tmp_path / "whole")
    assert stage.newest == 1


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_large_files_go_in_parts(proxy: Proxy, worker: Worker, parts: None, tmp_path: Path) -> None:
    """Killed between two of them, and with parts that fail."""
    draw = random.Random(19)
    assert kills(Stage(tmp_path / "kills" / "small", worker, "parts-kills", LARGE), 9, tmp_path, draw) >= 5
    faults(Stage(tmp_path / "faults" / "small", worker, "parts-faults", LARGE), 20, proxy, tmp_path, draw)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_kills_and_fifty_faults(proxy: Proxy, worker: Worker, tmp_path: Path) -> None:
    draw = random.Random(18)
    stage, killed = Stage(tmp_path / "kills" / "small", worker, "fifty-kills"), 0
    while killed < 50:
        killed += kills(stage, 10, tmp_path, draw)
    met = faults(Stage(tmp_path / "faults" / "small", worker, "fifty-faults"), 50, proxy, tmp_path, draw)
    print(f"{killed} kills and {met} faults; {len(stage.committed)} checkpoints committed, nothing lost")

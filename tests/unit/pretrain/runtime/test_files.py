import fcntl
import os
from pathlib import Path

import pytest

from pretrain.checkpoint import Lock, is_done, mark_done
from pretrain.errors import UserError
from pretrain.runtime import files
from pretrain.runtime.files import make_folder, write_file


class Holder:
    """Another process that holds a lock, and says that it is on the machine `host`."""

    def __init__(self, path: Path, host: str) -> None:
        ready, held = os.pipe()
        wait, self.end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.end)
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            os.write(fd, f"process 7 on {host}\n".encode())
            os.write(held, b".")
            os.read(wait, 1)
            os._exit(0)
        os.close(wait)
        os.read(ready, 1)

    def stop(self) -> None:
        os.close(self.end)
        os.waitpid(self.pid, 0)


def test_a_holder_on_this_machine_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(tmp_path / "lock", os.uname().nodename)
    monkeypatch.setattr(files.time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(UserError, match=r"process 7 on .* writes here"):
        Lock(tmp_path / "lock")
    holder.stop()
    Lock(tmp_path / "lock").release()


def test_a_holder_on_another_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a node failure: the filesystem frees the lock some time later."""
    holder = Holder(tmp_path / "lock", "elsewhere")
    monkeypatch.setattr(files.time, "sleep", lambda _: holder.stop())
    lock = Lock(tmp_path / "lock")
    assert str(os.getpid()) in (tmp_path / "lock").read_text()
    lock.release()


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(tmp_path / "lock", "elsewhere")
    monkeypatch.setattr(files, "LEASE", -1.0)
    with pytest.raises(UserError, match="process 7 on elsewhere writes here"):
        Lock(tmp_path / "lock")
    holder.stop()


def test_folders_and_files(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    write_file(tmp_path / "a" / "b" / "c", b"1")
    write_file(tmp_path / "a" / "b" / "c", b"2")
    assert [p.read_bytes() for p in (tmp_path / "a" / "b").iterdir()] == [b"2"]


def test_done(tmp_path: Path) -> None:
    assert not is_done(tmp_path)
    mark_done(tmp_path, {"step": 7})
    assert is_done(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["DONE"]

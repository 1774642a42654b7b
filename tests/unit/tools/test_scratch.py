"""What a benchmark writes: gone at its end, and after a kill at the start of the next."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarks.scratch import scratch

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from tools.benchmarks.scratch import scratch
with scratch(Path(sys.argv[1]), "bench-x-") as folder:
    (folder / "gigabytes").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a folder until its standard input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(place)]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    strange, other = tmp_path / "bench-x-mine", tmp_path / "another"
    for folder in (strange, other):
        folder.mkdir()
        (folder / "data").write_text("x")
    lives, kept = holder(tmp_path)
    killed, left = holder(tmp_path)
    try:
        assert kept.is_dir()
        assert kept != left
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert (left / "gigabytes").exists()
        with scratch(tmp_path, "bench-x-") as folder:
            assert not left.exists()
            assert (kept / "gigabytes").exists()
            assert (strange / "data").exists()  # nobody knows whose it is
            assert (other / "data").exists()
            (folder / "a").mkdir()
        assert not folder.exists()
        lives.communicate("", timeout=60)
        assert not kept.exists()
        assert sorted(tmp_path.iterdir()) == [other, strange]
    finally:
        for process in (lives, killed):
            process.kill()
            process.wait()


def test_a_fault_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch(tmp_path, "bench-x-"):
        raise KeyError
    assert not list(tmp_path.iterdir())

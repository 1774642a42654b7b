"""A heartbeat while there is one, and the end of a process that has hung, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.guard.watchdog import STEP, Watchdog

ROOT = Path(__file__).parents[4]


def test_the_heartbeat_says_what_the_stage_does(tmp_path: Path) -> None:
    folder = tmp_path / "run/stage"

    def fails() -> None:
        with Watchdog(folder, 0, 0.0) as watchdog:
            watchdog.beat(STEP, 7)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    told = json.loads((folder / "heartbeat").read_text())
    assert (told["phase"], told["step"]) == ("failed", 7)
    with Watchdog(folder, 0, 100.0) as watchdog:
        watchdog.beat("validation", 9)
    again = json.loads((folder / "heartbeat").read_text())
    assert (again["phase"], again["step"]) == ("ended", 9)
    assert again["time"] > told["time"]
    assert set(again) == {"step", "phase", "time", "pid", "host"}
    with Watchdog(tmp_path / "other", 1, 0.0):
        pass
    assert not (tmp_path / "other").exists(), "only rank 0 writes it"


HANGS = """
import ctypes, faulthandler, sys, threading
from pathlib import Path
from pretrain.guard.watchdog import STEP, Watchdog

def waits_for_ever():
    threading.Event().wait()

def keeps_the_lock_of_python():
    threading.Event().wait(1)  # the watchdog's thread has set its timer by then
    ctypes.PyDLL(None).pause()

with Watchdog(Path(sys.argv[1]), 3, 4.0) as watchdog:
    watchdog.beat(STEP, 12)
    globals()[sys.argv[2]]()
"""


@pytest.mark.parametrize("how", ["waits_for_ever", "keeps_the_lock_of_python"])
def test_a_hung_process_ends_and_leaves_its_stacks(tmp_path: Path, how: str) -> None:
    """Python's own threads write them to a file; when they cannot run either, they go to stderr."""
    command = [sys.executable, "-c", HANGS, str(tmp_path), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    if how == "waits_for_ever":
        assert "rank 3 on " in done.stderr
        assert "phase: step, after step 12: its stacks are in" in done.stderr
        written = (tmp_path / "stacks/rank-3.txt").read_text()
        assert "phase: step, after step 12" in written
    else:
        written = done.stderr
    assert how in written
    assert "_watch" in written, "all threads"

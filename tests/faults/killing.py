"""Runs work in a forked child that kills itself with SIGKILL before a chosen line of the store's code.

The line is one of those that the work executes in the store, in `shutil` and in `pathlib`, in any thread, so a number
drawn at random is a random point of a save, a commit or a removal, and the same seed is the same point again.
"""

import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

Say = Callable[[str], None]
Work = Callable[[Say], None]

NEVER = -1  # counts the lines without a kill
WATCHED = ("/pretrain/checkpoint/", "/shutil.py", "/pathlib.py")


def base_seed() -> int:
    """The seed of this run: another one each time, or that of CAMBIUM_FAULT_SEED to repeat a run."""
    return int(os.environ.get("CAMBIUM_FAULT_SEED") or random.SystemRandom().randrange(1 << 30))


@dataclass(frozen=True)
class Child:
    """A forked child; `join` it."""

    pid: int
    pipe: int

    def join(self) -> tuple[list[str], int]:
        """What the child said before it ended, and how many of its lines were watched (-1 when it was killed)."""
        with os.fdopen(self.pipe) as pipe:
            said = pipe.read().splitlines()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return said, -1
        assert status == 0, "\n".join(said)
        return said[:-1], int(said[-1])


def start(work: Work, kill_at: int | None = None) -> Child:
    """Begins the work in a child, which is killed before its watched line number `kill_at`; None watches none."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _child(work, kill_at, writer)
    os.close(writer)
    return Child(pid, reader)


def run(work: Work, kill_at: int | None = None) -> tuple[list[str], int]:
    """Does the work in a child; see `start` and `Child.join`."""
    return start(work, kill_at).join()


@cache
def _watched(file: str) -> bool:
    return any(name in file for name in WATCHED)


def _child(work: Work, kill_at: int | None, writer: int) -> None:
    lines = 0

    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if event == "call":
            return watch if _watched(frame.f_code.co_filename) else None
        if event == "line":
            if lines == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return watch

    def say(text: str) -> None:
        os.write(writer, f"{text}\n".encode())

    code = 1
    try:
        if kill_at is not None:
            threading.settrace(watch)
            sys.settrace(watch)
        work(say)
        sys.settrace(None)
        say(str(lines))
        code = 0
    except BaseException:
        sys.settrace(None)
        say(traceback.format_exc())
    finally:
        os._exit(code)

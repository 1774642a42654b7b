"""Tells whether a stage is alive, and ends a rank that has hung.

A rank that waits for ever in a collective keeps a whole job's GPUs until somebody looks. Each rank watches itself,
which needs no connection to the others: when one hangs, the others soon wait for it, and all stop at the same time.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pretrain.runtime.files import make_folder, write_json

log = logging.getLogger(__name__)

STEP = "step"
LONGER = 4  # how much longer than a step anything else may take
STDERR = 2
INTERVAL = 5.0  # the most seconds between two looks at what the stage does


class Watchdog:
    """A thread that knows what the stage is doing from `beat`, which costs the training loop nothing.

    Rank 0's writes the file `heartbeat` into the run folder, at most every few seconds: JSON with `step`, `phase`,
    `time` (of the last beat, in seconds since 1970), `pid` and `host`. When `limit` seconds pass in a step without a
    beat, or `LONGER` times as many in another phase, each rank's watchdog writes the stacks of all of its threads to
    `stacks/rank-N.txt` and ends the process with code 1, a crash. limit 0: never.
    """

    def __init__(self, folder: Path, rank: int, limit: float) -> None:
        self._folder, self._rank, self._limit = folder, rank, limit
        self._interval = min(INTERVAL, limit / 10) if limit else INTERVAL
        # The ranks notice one after the other, and the first one to leave would end the rest before they have written.
        self._grace = 2 * self._interval + limit / 20
        self._last = ("start", 0, time.time(), time.monotonic())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, phase: str, step: int) -> None:
        """Notes that the stage has got on and what it does now; step: the last one that it has finished."""
        self._last = (phase, step, time.time(), time.monotonic())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.beat("failed" if kind else "ended", self._last[1])
        self._write_heartbeat()

    def _watch(self) -> None:
        noticed = None
        while True:
            phase, step, _, at = last = self._last
            limit = self._limit * (1 if phase == STEP else LONGER)
            if last is not noticed:
                noticed = last
                self._write_heartbeat()
                if limit:
                    # Needs no lock of Python's, which the main thread may hang with: it ends what this thread cannot.
                    remaining = at + limit + 2 * self._grace - time.monotonic()
                    faulthandler.dump_traceback_later(max(remaining, self._grace), exit=True, file=STDERR)
            elif limit and time.monotonic() - at > limit:
                self._end(phase, step, time.monotonic() - at)
            if self._over.wait(self._interval):
                return

    def _write_heartbeat(self) -> None:
        phase, step, time_of_beat, _ = self._last
        if self._rank:
            return
        heartbeat = {
            "step": step,
            "phase": phase,
            "time": time_of_beat,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        try:
            make_folder(self._folder)
            write_json(self._folder / "heartbeat", heartbeat)
        except OSError as problem:  # such as a full disk, which the stage finds out where it matters
            log.warning("the heartbeat was not written: %s", problem)

    def _end(self, phase: str, step: int, seconds: float) -> None:
        path = self._folder / "stacks" / f"rank-{self._rank}.txt"
        who = f"rank {self._rank} on {socket.gethostname()}"
        message = f"{who} has hung for {seconds:.0f} s; phase: {phase}, after step {step}"
        try:
            make_folder(path.parent)
            with path.open("a") as file:
                print(f"{time.strftime('%F %T')}: {message}", file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError as problem:
            log.error("%s: %s", path, problem)
            faulthandler.dump_traceback(STDERR)
        log.error("%s: its stacks are in %s, and it ends (guard.hang says after how long)", message, path)
        time.sleep(self._grace)
        os._exit(1)

"""Work on several ranks, measured: each is a process of its own in a gloo group."""

import contextlib
import multiprocessing
import os
import queue
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from benchmarks import memory
from pretrain.errors import UserError


@dataclass(frozen=True)
class Cost:
    """What a piece of work took: seconds by the clock, bytes asked of files, bytes of those that came from the disk and
    not from the kernel's cache, and memory at its peak, in bytes above what there was before."""

    seconds: float
    read: int
    disk: int
    peak: int

    @staticmethod
    def of(work: Callable[[], object]) -> "Cost":
        """Does it, and measures; of processes that it forks, the memory that is their own."""
        memory.reset_peak()
        before, (read, disk) = memory.resident(), _bytes_read()
        with _Children() as children:
            begun = time.perf_counter()
            work()
            seconds = time.perf_counter() - begun
        after = _bytes_read()
        return Cost(seconds, after[0] - read, after[1] - disk, memory.peak() - before + children.peak)


class _Children:
    """Watches the memory of the processes that this one begins: that which they do not share with it."""

    def __enter__(self) -> "_Children":
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = Path(f"/proc/self/task/{os.getpid()}/children")
        while not self._over.wait(0.1):
            used = 0
            for child in begun.read_text().split():
                with contextlib.suppress(psutil.Error):
                    used += psutil.Process(int(child)).memory_full_info().uss
            self.peak = max(self.peak, used)


def _bytes_read() -> tuple[int, int]:
    """Bytes asked of files, and bytes of those that the disk was asked for; of children when they have ended."""
    found = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(found["rchar"]), int(found["read_bytes"])


def command_cost(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Runs a command and measures it with all its children; raises UserError with its last words when it fails."""
    (read, disk), begun, peak = _bytes_read(), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **environment})
        root = psutil.Process(process.pid)
        while process.poll() is None:
            used = 0
            with contextlib.suppress(psutil.Error):
                for each in [root, *root.children(recursive=True)]:
                    used += each.memory_info().rss
            peak = max(peak, used)
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        if process.returncode:
            said.seek(0)
            raise UserError(f"{' '.join(command)} failed:\n{said.read()[-1000:]}")
    after = _bytes_read()
    return Cost(seconds, after[0] - read, after[1] - disk, peak)


def together(world: int, work: Callable[..., Callable[[], object]], *args: Any) -> Cost:
    """`work(rank, world, *args)` prepares on each rank and returns what is measured on all at once.

    The longest time, all bytes read, and the memory of all ranks together. Raises UserError when a rank fails.
    """
    context = multiprocessing.get_context("fork")  # nothing is imported twice
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(r, world, f"{folder}/store", results, work, args)) for r in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            found = [_answer(results, ranks) for _ in ranks]
            for process in ranks:
                process.join()
        finally:
            for process in ranks:
                process.kill()
    if failed := [error for error, _ in found if error]:
        raise UserError(f"a rank failed:\n{failed[0]}")
    costs = [cost for _, cost in found]
    together = [sum(getattr(c, what) for c in costs) for what in ("read", "disk", "peak")]
    return Cost(max(c.seconds for c in costs), *together)


def _answer(results: Any, ranks: Sequence[BaseProcess]) -> tuple[str, Cost]:
    """The next rank's answer; a rank that died without one is a failure, not something to wait for."""
    while True:
        died = [process.exitcode for process in ranks if process.exitcode]
        try:
            return results.get(timeout=1)
        except queue.Empty:
            if died:
                raise UserError(f"a rank died with exit code {died[0]}") from None


def _rank(
    rank: int, world: int, store: str, results: Any, work: Callable[..., Callable[[], object]], args: tuple[Any, ...]
) -> None:
    try:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        measured = work(rank, world, *args)
        dist.barrier()
        cost = Cost.of(measured)
        dist.barrier()
        results.put(("", cost))
        dist.destroy_process_group()
    except BaseException:
        results.put((traceback.format_exc(), None))
        raise

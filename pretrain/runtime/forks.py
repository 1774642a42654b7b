"""Spreads pieces of work over forked processes, none of which outlives the one that began them."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from pretrain.errors import UserError
from pretrain.runtime.comm import in_words

T = TypeVar("T")
Report = Callable[[int], Any]
SHOW = 0.5  # seconds between two reports of how far the processes are


def spread(
    work: Callable[[int, Report], T], count: int, processes: int, finished: Callable[[int, T], Any], report: Report
) -> None:
    """Does `work(i, report)` for every i below count, in order, each by the next process that is free.

    The processes are forks, so `work` may be any function; what it returns is pickled, and goes to `finished(i, ...)`
    in this process as it comes. report: called with the bytes that were done since its last call. Raises UserError with
    what `work` raised in any process, or when a process was killed; the others are killed then, and whenever this
    function ends by an exception.
    """
    context = multiprocessing.get_context("fork")
    following, moved = context.Value("q", 0), context.Value("q", 0)

    def add(n: int) -> None:
        with moved.get_lock():
            moved.value += n

    def take() -> int:
        with following.get_lock():
            following.value += 1
            return following.value - 1

    workers: dict[Any, Any] = {}
    reported = 0
    ready: Any
    try:
        for _ in range(min(processes, count)):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (work, count, take, add, sender, os.getpid())
            workers[receiver] = context.Process(target=_worker, args=arguments)
            workers[receiver].start()
            sender.close()
        while workers:
            for ready in wait(list(workers), timeout=SHOW):
                try:
                    index, result, failure = ready.recv()
                except EOFError:
                    process = workers.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise UserError(f"one of the processes ended with code {process.exitcode}") from None
                    continue
                if failure:
                    raise UserError(failure)
                finished(index, result)
            report(moved.value - reported)
            reported = moved.value
    finally:
        for process in workers.values():
            process.kill()
            process.join()


def _worker(
    work: Callable[[int, Report], Any],
    count: int,
    take: Callable[[], int],
    report: Report,
    sender: Connection,
    parent: int,
) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with its parent, whose lock is then free
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    torch.set_num_threads(1)  # a fork does not copy the pool of threads
    while (index := take()) < count:
        try:
            answer = (index, work(index, report), "")
        except Exception as error:
            answer = (index, None, in_words(error))
        sender.send(answer)

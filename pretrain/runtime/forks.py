"""Pieces of work spread over forked processes, none of which outlives the one that began them."""

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
Told = Callable[[int], Any]
SHOW = 0.5  # seconds between two looks at how far the processes are


def spread(
    work: Callable[[int, Told], T], count: int, processes: int, finished: Callable[[int, T], Any], told: Told
) -> None:
    """Does `work(i, told)` for every i below count, in order, each by the next process that is free.

    The processes are forks, so `work` may be any function; what it returns is pickled, and goes to `finished(i, ...)`
    in this process as it comes. told: hears of bytes as they are done. Raises UserError with what `work` raised in any
    process, or when a process was killed; the others are killed then, and whenever this function ends by an exception.
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
    shown = 0
    ready: Any
    try:
        for _ in range(min(processes, count)):
            receiver, sender = context.Pipe(duplex=False)
            given = (work, count, take, add, sender, os.getpid())
            workers[receiver] = context.Process(target=_worker, args=given)
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
            told(moved.value - shown)
            shown = moved.value
    finally:
        for process in workers.values():
            process.kill()
            process.join()


def _worker(
    work: Callable[[int, Told], Any], count: int, take: Callable[[], int], told: Told, sender: Connection, parent: int
) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody else may write once the lock is free
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    torch.set_num_threads(1)  # the pool of threads is not there after a fork
    while (index := take()) < count:
        try:
            answer = (index, work(index, told), "")
        except Exception as error:
            answer = (index, None, in_words(error))
        sender.send(answer)

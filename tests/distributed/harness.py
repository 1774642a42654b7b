"""Runs a function on N gloo ranks, each a process forked from one server that has imported megatron already."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

TIMEOUT = 240  # seconds after which a hung group is killed and the test fails


def _child(
    rank: int, world: int, store: str, results: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        results.put((rank, function(*args), None))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
        raise


@contextmanager
def _started(
    world: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[tuple[list[BaseProcess], Any]]:
    """The processes of the ranks, and the queue of their results; killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_child, args=(r, world, f"{folder}/store", results, function, args))
            for r in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            yield list(ranks), results
        finally:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.join()


def run(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returned on each rank. Arguments and results cross processes by value."""
    found: dict[int, Any] = {}
    with _started(world, function, args) as (ranks, results):
        try:
            while len(found) < world:
                rank, value, error = results.get(timeout=TIMEOUT)
                assert error is None, f"rank {rank} of {world}:\n{error}"
                found[rank] = value
            for process in ranks:
                process.join(TIMEOUT)
        except queue.Empty:
            raise AssertionError(f"ranks {sorted(set(range(world)) - set(found))} of {world} gave no answer") from None
    return [found[r] for r in range(world)]


def run_killed(world: int, target: str, nth: int, function: Callable[..., Any], *args: Any) -> None:
    """`function(*args)` on each rank, killed by SIGKILL: the last rank by itself when it calls `target` (a function
    "module:name" or "module:Class.name") for the nth time, the others as soon as it is dead, like those of a job."""
    with _started(world, _killing, (target, nth, function, args)) as (ranks, results):
        ranks[-1].join(TIMEOUT)
        if ranks[-1].exitcode != -signal.SIGKILL:
            raise AssertionError(f"{target} was not called {nth} times: {results.get(timeout=TIMEOUT)}")


def _killing(target: str, nth: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    import torch.distributed as dist

    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), count(1)

    def called(*given: Any, **named: Any) -> Any:
        if next(calls) == nth and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(owner, name, called)
    return function(*args)

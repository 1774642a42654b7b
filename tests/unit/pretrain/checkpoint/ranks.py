"""Runs a function as several ranks over gloo, forked from the test process so that nothing is imported twice."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def _rank(work: Callable[..., Any], rank: int, world: int, store: Path, pipe: Any, args: tuple[Any, ...]) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        pipe.send((True, work(rank, *args)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def run_ranks(world: int, work: Callable[..., Any], store: Path, *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns on each rank; `store` is a new file. Fails with a rank's trace."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_rank, args=(work, rank, world, store, pipes[rank][1], args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    results = []
    try:
        for rank, (receiver, _) in enumerate(pipes):
            assert receiver.poll(60), f"rank {rank} says nothing"
            good, value = receiver.recv()
            assert good, f"rank {rank}:\n{value}"
            results.append(value)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
    return results

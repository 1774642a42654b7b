"""Runs a function on N gloo ranks, each a process forked from one server that has imported megatron already."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import traceback
from collections.abc import Callable
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


def run(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returned on each rank. Arguments and results cross processes by value."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pretrain.engine"])
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_child, args=(r, world, f"{folder}/store", results, function, args))
            for r in range(world)
        ]
        for process in ranks:
            process.start()
        found: dict[int, Any] = {}
        try:
            while len(found) < world:
                rank, value, error = results.get(timeout=TIMEOUT)
                assert error is None, f"rank {rank} of {world}:\n{error}"
                found[rank] = value
            for process in ranks:
                process.join(TIMEOUT)
        except queue.Empty:
            raise AssertionError(f"ranks {sorted(set(range(world)) - set(found))} of {world} gave no answer") from None
        finally:
            for process in ranks:
                process.kill()
    return [found[r] for r in range(world)]

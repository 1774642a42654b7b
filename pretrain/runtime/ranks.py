"""Joins the ranks of a stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pretrain.errors import UserError
from pretrain.runtime.comm import Comm
from pretrain.runtime.device import own_gpu

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""The timeout of torch's process groups. It ends a rank without a word about the others, so it is longer than any limit
of pretrain.guard.watchdog."""


def world_size() -> int:
    """How many ranks were started, from the launcher's environment (1 without a launcher)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Initialise torch.distributed from the launcher's environment: nccl with CUDA, gloo without."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(own_gpu())
    if world_size() > 1:
        store, rank, world = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    else:
        store, rank, world = dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)


def agreed(work: Callable[[], T]) -> T:
    """Does `work` on rank 0; its result is returned, or its UserError raised, on every rank (collective)."""
    return Comm().on_first(work, UserError)


def is_first() -> bool:
    """Whether this is rank 0, which writes and speaks for all ranks, or the only process."""
    return Comm().rank == 0

"""Joining the ranks of a stage."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pretrain.config import Stage
from pretrain.errors import UserError
from pretrain.guard.watchdog import COLLECTIVE_TIMEOUT
from pretrain.layout import Layout
from pretrain.runtime.comm import Comm
from pretrain.runtime.device import own_gpu

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)


def world_size() -> int:
    """Ranks that were started, from the launcher's environment (1 without one)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def layout_of(stage: Stage, world: int) -> Layout:
    """The layout of a stage on `world` ranks.

    Raises UserError when the ranks do not make up tp * pp * dp, naming the keys and the number that would fit.
    """
    p = stage.parallel
    model_parallel = p.tp * p.pp
    dp = p.dp or world // model_parallel
    if dp < 1 or dp * model_parallel != world:
        fits = f"{dp * model_parallel} ranks" if p.dp else f"a multiple of {model_parallel} ranks"
        raise UserError(
            f"stage {stage.name!r}: parallel.tp {p.tp} x parallel.pp {p.pp}"
            + (f" x parallel.dp {p.dp}" if p.dp else "")
            + f" needs {fits}, and {world} {'was' if world == 1 else 'were'} started: start that many, "
            "or change parallel in the config"
        )
    layout = Layout.make(
        stage.model.layers,
        tp=p.tp,
        pp=p.pp,
        dp=dp,
        pipeline=p.pipeline,
        sequence_parallel=p.sequence_parallel,
    )
    micro = stage.train.micro_batch
    unit = micro * dp * (p.pp if layout.virtual > 1 else 1)
    for key in ("global_batch", "ramp_from", "ramp_by"):
        if (batch := getattr(stage.train, key)) % unit:
            raise UserError(
                f"stage {stage.name!r}: train.{key} {batch} is not a multiple of {unit} "
                f"(train.micro_batch {micro} x {dp} data-parallel ranks{' x pp' if unit > micro * dp else ''}): "
                f"use {batch // unit * unit or unit} or {(batch // unit + 1) * unit}"
            )
    return layout


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
    """What `work` returns on rank 0, on every rank; a UserError there is raised on every rank (collective)."""
    result, error = None, ""
    if dist.get_rank() == 0:
        try:
            result = work()
        except UserError as problem:
            error = str(problem)
    result, error = Comm().from_first((result, error))
    if error:
        raise UserError(error)
    return result  # type: ignore[return-value]

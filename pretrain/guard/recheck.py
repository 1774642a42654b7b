"""Detects silent corruption: a gradient that is computed twice from the same numbers and comes out differently.

A GPU or a host whose arithmetic or memory is faulty now and then raises no error: it trains the model on wrong numbers
(Dixit et al. 2021, "Silent data corruptions at scale"). With `guard.recheck` some steps' forward and backward passes
are made a second time before anything is reduced or updated, and compared bit for bit, on every rank by itself.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.runtime.files import write_file, write_json

SUSPECTS = "suspects.json"
"""File of a stage's folder: how often each host has computed a gradient that could not be computed again."""
UNFIT = "UNFIT"
"""File of a stage's folder: hosts, one a line, on which it must not go on; whoever starts it again removes it."""
TWICE = 2  # a cosmic ray strikes once, and what is broken fails again
_CHUNK = 1 << 20  # elements that are summed at a time


@dataclass(frozen=True)
class Unlike:
    """A rank whose two passes over the same samples gave different gradients, and its host by the scheduler's name."""

    rank: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def checksum(flat: Tensor) -> Tensor:
    """A checksum of the bits of a flat fp32 tensor: int64 [], on its device.

    It is the sum of the bits of each element times an odd number that belongs to its place, modulo 2^64. Equal bits
    have equal sums, and one element that differs changes the sum: an odd number has no common divisor with 2^64.
    """
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _CHUNK):
        bits = flat[start : start + _CHUNK].view(torch.int32).long()
        odd = torch.arange(start, start + len(bits), device=flat.device).mul_(2).add_(1)
        total += bits.mul_(odd).sum()
    return total


def unlike(first: Tensor, second: Tensor) -> tuple[Unlike, ...]:
    """The ranks on which two passes differ, from each rank's own two checksums; the same on every rank (collective)."""
    differs = (first != second).any().to(torch.uint8)[None]
    by_rank = [torch.empty_like(differs) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, differs)
    ranks = torch.cat(by_rank).nonzero().flatten().tolist()
    if not ranks:
        return ()
    hosts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, os.environ.get("SLURMD_NODENAME", socket.gethostname()))
    return tuple(Unlike(rank, hosts[rank]) for rank in ranks)


def suspect(folder: Path, unlike_ranks: Sequence[Unlike]) -> list[str]:
    """Counts the hosts of a step whose passes differed, and names those that have now done so twice (rank 0 alone).

    They are written to `UNFIT` and are no suspects any more: when they come back they have been looked after.
    """
    path = folder / SUSPECTS
    counts = Counter(json.loads(path.read_text()) if path.exists() else {})
    counts.update({each.host for each in unlike_ranks})
    unfit = sorted(host for host, count in counts.items() if count >= TWICE)
    suspects = {host: count for host, count in counts.items() if host not in unfit}
    if unfit:
        write_file(folder / UNFIT, "".join(f"{host}\n" for host in unfit).encode())
    write_json(path, suspects)
    return unfit

"""What a save needs of torch.distributed, or of one process without it."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Comm:
    """The ranks that save and load together. Everything but `rank` and `world` is collective."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self.joined else 0
        self.world = dist.get_world_size(group) if self.joined else 1

    def from_first(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def to_first(self, value: T) -> list[T]:
        """All values by rank, on rank 0; an empty list elsewhere."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values, group=self.group, group_dst=0)
        return values or []

    def all_true(self, flag: bool) -> bool:
        """Whether the flag is set on every rank; the cheapest of the three."""
        if self.world == 1:
            return flag
        device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        least = torch.tensor([int(flag)], device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self.group)
        return bool(least.item())

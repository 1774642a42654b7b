"""The few collectives on Python objects that saving and starting need; a single process does without them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pretrain.errors import UserError

T = TypeVar("T")


class Comm:
    """The ranks that work together. Everything except `rank` and `world` is collective."""

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

    def on_first(self, work: Callable[[], T], failures: type[Exception] = Exception) -> T:
        """Does `work` on rank 0, and returns its result on every rank. A failure of this type is a UserError on every
        rank."""
        result: Any = None
        failure, cause = "", None
        if self.rank == 0:
            try:
                result = work()
            except failures as error:  # raised below, when the other ranks know
                failure, cause = in_words(error), error
        result, failure = self.from_first((result, failure))
        if failure:
            raise UserError(failure) from cause
        return result

    def largest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.world == 1:
            return value
        device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        maximum = torch.tensor([value], device=device)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=self.group)
        return int(maximum.item())


def in_words(error: Exception, where: Path | str = "checkpoint") -> str:
    """An exception as a part of a message; `where` stands in for a file that it does not name."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or where}: {error.strerror or error}"
    return f"{type(error).__name__}: {error}"

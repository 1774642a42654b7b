"""Values that are made on the host, a piece at a time, on their way to a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Staging:
    """Two pieces of host memory of up to `numel` fp32 elements each: one is copied to the device while the next is
    made in the other. `pinned`: page-locked, as a copy that does not wait for the host needs.

    What was put is on the device for whatever is queued there afterwards; the host waits for a piece only before it
    writes over it.
    """

    def __init__(self, numel: int, *, pinned: bool) -> None:
        self._pieces = [torch.empty(numel, pin_memory=pinned) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)] if pinned else []
        self._next = 0

    def put(self, target: Tensor, make: Callable[..., object]) -> None:
        """target = what `make(out=host)` writes into `host`: fp32, contiguous, on the host and of target's shape."""
        piece = self._pieces[self._next]
        if self._copied:
            self._copied[self._next].synchronize()
        host = piece[: target.numel()].view(target.shape)
        make(out=host)
        target.copy_(host, non_blocking=True)
        if self._copied:
            self._copied[self._next].record()
        self._next = 1 - self._next

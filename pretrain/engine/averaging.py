"""A moving average of the weights, in fp32 and cut over the data-parallel ranks as the masters are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pretrain.engine.zero import Zero

PART = 1 << 24  # elements that change places at a time, through a temporary


class Average:
    """This rank's part of the average, `values`, beside its part of the weights. Whoever fills the weights fills it."""

    def __init__(self, zero: Zero, publish: Callable[[], None]) -> None:
        """publish: brings changed masters into the model (collective)."""
        self.values = torch.zeros_like(zero.masters.detach())
        self._zero, self._publish = zero, publish

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Go this part of the way to the weights, after they were updated (not collective)."""
        self.values.lerp_(self._zero.masters, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In here the model has the averaged weights; behind it, bit for bit those that it had (collective)."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weights, values in zip(self._zero.masters.split(PART), self.values.split(PART), strict=True):
            aside = weights.clone()
            weights.copy_(values)
            values.copy_(aside)
        self._publish()

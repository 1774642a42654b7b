"""Memory of the device that is not there: what lives, the most that did in each pass, and what that consisted of."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pretrain.dryrun.findings import here

BLOCK = 512
"""Bytes of which the caching allocator of CUDA gives whole multiples."""


@dataclass
class Phase:
    """One pass: bytes at its peak and at its end, and the bytes of the peak by the line that asked for them."""

    name: str
    peak: int
    after: int = 0
    parts: dict[str, int] = field(default_factory=dict)


class Memory:
    """Bytes of all storages on the device. A storage lives as long as a tensor that looks at it."""

    def __init__(self) -> None:
        self.now = 0
        self.phases = [Phase("", 0)]
        self._live: dict[int, tuple[int, str, object]] = {}
        self._by_line: Counter[str] = Counter()
        self._higher = False  # than when the parts of the peak were taken
        self._pauses = 0

    def see(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or self._pauses:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        line = next(iter(here(1)), "")
        self._live[key] = (size, line, weakref.ref(storage, lambda _: self._gone(key)))
        self._by_line[line] += size
        self.now += size
        phase = self.phases[-1]
        if self.now > phase.peak:
            phase.peak, self._higher = self.now, True

    def _gone(self, key: int) -> None:
        self._take_parts()
        size, line, _ = self._live.pop(key)
        self._by_line[line] -= size
        self.now -= size

    def _take_parts(self) -> None:
        """The parts of the peak, taken only where memory is about to fall again."""
        phase = self.phases[-1]
        if self._higher and self.now == phase.peak:
            phase.parts = {line: size for line, size in self._by_line.items() if size >= 1 << 20}
            self._higher = False

    def begin(self, name: str) -> None:
        """Another pass begins."""
        self._take_parts()
        self.phases[-1].after = self.now
        self.phases.append(Phase(name, self.now))
        self._higher = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing that is made takes memory."""
        self._pauses += 1
        yield
        self._pauses -= 1

    @property
    def peak(self) -> int:
        """Of this pass, so far."""
        return self.phases[-1].peak

    def result(self) -> list[Phase]:
        """All passes, ended."""
        self.begin("")
        return self.phases[1:-1]


MEMORY = Memory()

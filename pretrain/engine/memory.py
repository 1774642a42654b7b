"""Where the memory of an engine is: of each of its blocks with attention, and each micro-batch of its lanes.

A lane is a row of the global batch, which reads consecutive text. What a step remembers was made by the one before it;
what it makes is taken over when its update has been made, so that passes may be made again. After a step that is not
made, whose text is behind the lanes all the same, they remember nothing. Where documents do not see each other, a lane
has to remember what is of the document that it is in, and nothing where it begins one. What a block remembers, it sees
in pretrain.families.common.memory, whose shapes these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.documents import reached
from pretrain.data.samples import Samples, size
from pretrain.families.common import memory
from pretrain.families.common.layer import Layer
from pretrain.families.common.memory import Segment
from pretrain.layout import Layout
from pretrain.runtime.device import sent


def layers_of(chunks: Iterable[torch.nn.Module]) -> list[int]:
    """The numbers, from 1, of the blocks here that can remember; from here on they do."""
    numbers = []
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, Layer) and module.has_attention:
                module.remembers = True
                numbers.append(module.layer_number)
    return numbers


class Memory:
    """What the lanes of a data-parallel rank remember, in this rank's blocks.

    length: M, in tokens. layers: of these numbers. parts: over how many tensor-parallel ranks a sequence is split.
    filled: of each lane here, at how many places there is something to remember; on the host. kept: of each micro-batch
    and layer, [M, B, hidden]. holds: whether there is any such, on all ranks alike.
    """

    def __init__(
        self, length: int, chunks: Iterable[torch.nn.Module], layout: Layout, micro_batch: int, device: torch.device
    ) -> None:
        """chunks: those of the engine, whose blocks may have a memory from here on."""
        self.length, self.layers, self.micro_batch, self.device = length, layers_of(chunks), micro_batch, device
        self.parts = layout.tp if layout.sequence_parallel else 1
        self.filled: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.kept: list[dict[int, Tensor]] = []
        self.holds = False
        self._passed: dict[int, Segment] = {}
        self._own = self._after = self.filled

    def empty(self, samples: int) -> None:
        """So many lanes of this rank begin, and remember nothing."""
        self.filled, self.holds = np.zeros(samples, dtype=np.int64), False
        self.kept = [{} for _ in range(samples // self.micro_batch)]

    def hold(self, hidden: int, dtype: torch.dtype) -> None:
        """Make room for what these lanes remember."""
        shape = (self.length // self.parts, self.micro_batch, hidden)
        self.holds = True
        for kept in self.kept:
            kept.update({layer: torch.zeros(shape, dtype=dtype, device=self.device) for layer in self.layers})

    def start(self, samples: Samples) -> None:
        """The passes over these samples of this rank begin, which are on the host; lanes are dealt anew where there
        were not as many before (collective over the data-parallel ranks)."""
        if size(samples) != len(self.filled):
            self._deal(size(samples))
        self._passed = {}
        self._own, self._after = self._reached(samples, self.filled)

    def begin(self, number: int) -> None:
        """The forward pass of micro-batch `number` begins, in one of the pipeline chunks of this rank."""
        if number not in self._passed:
            own = self._own[number * self.micro_batch : (number + 1) * self.micro_batch]
            self._passed[number] = self._segment(own, self.kept[number], {})
        memory.begin(self._passed[number])

    def _reached(self, samples: Samples, filled: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """At how many places there is something to remember for these samples, of those where there is, and behind."""
        own, after = reached(samples, filled)
        return own, np.minimum(after, self.length)

    def _segment(self, own: NDArray[np.int64], kept: Mapping[int, Tensor], after: dict[int, Tensor]) -> Segment:
        """Of a micro-batch; own: at how many places each of its rows has something to remember."""
        empty = None
        if 0 < own.sum() < len(own) * self.length:
            places = np.arange(self.length) < self.length - own[:, None]
            empty = sent(torch.from_numpy(places), self.device)
        return Segment(self.length, bool(own.any()), kept, empty, self.parts, after)

    @staticmethod
    def end() -> None:
        """The passes are over: those that follow remember nothing unless they say so."""
        memory.begin(None)

    def take_over(self) -> None:
        """The step was made: its samples are what is remembered from here on."""
        self.kept = [self._passed[number].after for number in range(len(self._passed))]
        self.filled, self.holds = self._after, True
        self._passed = {}

    def pass_over(self) -> None:
        """The step was not made: its samples, which may be why, are not remembered, and what was before them is not
        what lies before the next ones."""
        self.filled, self._passed = np.zeros_like(self.filled), {}

    def forget(self, lanes: NDArray[np.bool_]) -> None:
        """These lanes of this rank remember nothing."""
        self.filled[lanes] = 0

    def _deal(self, samples: int) -> None:
        """Gives this rank its lanes of a global batch of another size."""
        if not self.holds:
            self.empty(samples)
            return
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        own, micro_batch = np.arange(rank * samples, (rank + 1) * samples), self.micro_batch
        filled = _gathered(torch.from_numpy(self.filled), ranks).numpy()
        old = own[own < len(filled)]
        self.filled = np.zeros(samples, dtype=np.int64)
        self.filled[: len(old)] = filled[old]
        by_lane = {layer: self._lanes(layer, ranks, old, samples) for layer in self.layers}
        self.kept = [
            {layer: lanes[:, start : start + micro_batch].contiguous() for layer, lanes in by_lane.items()}
            for start in range(0, samples, micro_batch)
        ]

    def _lanes(self, layer: int, ranks: int, old: NDArray[np.int64], samples: int) -> Tensor:
        """The memory [M, samples, hidden] of one layer: that of these old lanes, and nothing of the others."""
        here = torch.cat([kept[layer] for kept in self.kept], 1).transpose(0, 1)
        lanes = here.new_zeros(here.shape[1], samples, here.shape[2])
        lanes[:, : len(old)] = _gathered(here, ranks)[torch.from_numpy(old)].transpose(0, 1)
        return lanes


class Passing(Memory):
    """Of a forward pass whose micro-batches go on behind each other, row by row: the first remembers nothing."""

    def start(self, samples: Samples) -> None:
        self._latest: dict[int, Tensor] = {}
        self._rows: list[NDArray[np.int64]] = []
        after = np.zeros(self.micro_batch, dtype=np.int64)
        for first in range(0, size(samples), self.micro_batch):
            rows = {name: x[first : first + self.micro_batch] for name, x in samples.items()}
            own, after = self._reached(rows, after)
            self._rows.append(own)

    def begin(self, number: int) -> None:
        # Each layer passes micro-batches in order, whatever the pipeline: what it keeps is for its next one.
        memory.begin(self._segment(self._rows[number], self._latest, self._latest))


def _gathered(x: Tensor, ranks: int) -> Tensor:
    """The rows of all data-parallel ranks, which have as many each."""
    if ranks == 1:
        return x
    device = x.device
    if dist.get_backend() == "nccl":
        x = x.to(torch.cuda.current_device())
    parts = [torch.empty_like(x.contiguous()) for _ in range(ranks)]
    dist.all_gather(parts, x.contiguous(), group=parallel_state.get_data_parallel_group())
    return torch.cat(parts).to(device)

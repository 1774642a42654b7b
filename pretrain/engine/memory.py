"""Where the memory of an engine is: of each of its blocks with attention, and each micro-batch of its lanes.

A lane is a row of the global batch, which reads consecutive text. What a step remembers was made by the one before it;
what it makes is taken over when its update has been made, so that passes may be made again, and a step that is not
made leaves the memory as it was. What a block remembers, it sees in
pretrain.families.common.memory, whose shapes these are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor

from pretrain.families.common import memory
from pretrain.families.common.layer import Layer
from pretrain.families.common.memory import Segment
from pretrain.layout import Layout


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
        self._read = 0

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

    def start(self, samples: int, length: int) -> None:
        """The passes over so many samples of this rank begin, each of so many tokens; lanes are dealt anew where there
        were not as many before (collective over the data-parallel ranks)."""
        if samples != len(self.filled):
            self._deal(samples)
        self._passed, self._read = {}, length

    def begin(self, number: int) -> None:
        """The forward pass of micro-batch `number` begins, in one of the pipeline chunks of this rank."""
        if number not in self._passed:
            filled = self.filled[number * self.micro_batch : (number + 1) * self.micro_batch]
            empty = None
            if 0 < filled.sum() < len(filled) * self.length:
                places = np.arange(self.length) < self.length - filled[:, None]
                empty = torch.from_numpy(places).to(self.device)
            self._passed[number] = Segment(self.length, bool(filled.any()), self.kept[number], empty, self.parts)
        memory.begin(self._passed[number])

    @staticmethod
    def end() -> None:
        """The passes are over: those that follow remember nothing unless they say so."""
        memory.begin(None)

    def take_over(self) -> None:
        """The step was made: its samples are what is remembered from here on."""
        self.kept = [self._passed[number].after for number in range(len(self._passed))]
        self.filled, self.holds = np.minimum(self.filled + self._read, self.length), True
        self._passed = {}

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

    def start(self, samples: int, length: int) -> None:
        self._latest: dict[int, Tensor] = {}
        self._read = length

    def begin(self, number: int) -> None:
        filled, empty = min(number * self._read, self.length), None
        if 0 < filled < self.length:
            empty = (torch.arange(self.length, device=self.device) < self.length - filled).expand(self.micro_batch, -1)
        # Each layer passes micro-batches in order, whatever the pipeline: what it keeps is for its next one.
        memory.begin(Segment(self.length, filled > 0, self._latest, empty, self.parts, self._latest))


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

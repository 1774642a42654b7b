"""Passes over a rank's samples: Megatron-core's schedules, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from growth.architecture import Architecture
from pretrain import families
from pretrain.data.samples import Samples, size
from pretrain.engine import megatron
from pretrain.engine.dropout import NOTHING, Drops
from pretrain.engine.memory import Memory
from pretrain.engine.teacher import Teacher
from pretrain.layout import Layout
from pretrain.losses import Term
from pretrain.runtime.device import sent


class Passes:
    """Passes of a model under a layout over samples of which each data-parallel rank has its own."""

    def __init__(
        self, arch: Architecture, layout: Layout, pp_rank: int, chunks: torch.nn.ModuleList, micro_batch: int
    ) -> None:
        """chunks: of this pipeline rank. micro_batch: samples of one."""
        self._family, self._micro_batch = families.of(arch.family), micro_batch
        self._chunks: list[Any] = list(chunks)
        self._device = next(chunks.parameters()).device
        self.last = pp_rank == layout.pp - 1
        self._boundaries = megatron.boundaries(arch, layout, pp_rank)
        self._one = torch.ones((), dtype=torch.int, device=self._device)

    def moved(self, x: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        return sent(x, self._device)

    def _batches(self, samples: Samples, drops: Drops, memory: Memory | None) -> Iterator[Samples]:
        """The micro-batches of this data-parallel rank's samples. Each is computed as soon as it is taken, with what is
        dropped of it, and what is remembered of the text before it."""
        for number, start in enumerate(range(0, size(samples), self._micro_batch)):
            rows = slice(start, start + self._micro_batch)
            drops.begin(number, rows)
            if memory:
                memory.begin(number)
            yield {name: x[rows] for name, x in samples.items()}

    def forward(self, counts: Tensor, terms: Sequence[Term], teacher: Teacher | None = None) -> Callable[..., Any]:
        """Megatron's forward_step: the loss of a micro-batch as its share of the global batch's means.

        counts: over how many labels of the global batch each of the terms is a mean, divided by its weight.
        """
        scale = counts.reciprocal().float()
        forward = teacher.forward if teacher else self._family.model.forward

        def step(batches: Iterator[Samples], model: Any) -> Any:
            samples = next(batches)

            def loss(output: Any) -> Any:
                outputs = {} if output is None else self._family.model.outputs(output)
                totals = torch.stack([term.total(outputs, samples) for term in terms])
                return (totals * scale).sum(), self._one, totals.detach()

            return forward(model, samples), loss

        return step

    def run(
        self,
        forward: Callable[..., Any],
        samples: Samples,
        drops: Drops = NOTHING,
        memory: Memory | None = None,
        **how: bool,
    ) -> list[Tensor]:
        """Megatron's schedule over this rank's samples; what the last pipeline rank collected per micro-batch."""
        if memory:
            memory.start(samples)
        for chunk in self._chunks:
            chunk.config.calculate_per_token_loss = True  # the loss is already a share of the global mean
        samples = {name: self.moved(x) for name, x in samples.items()}
        batches = [self._batches(samples, drops, memory) for _ in self._chunks]
        collected: list[Tensor] = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=batches if len(batches) > 1 else batches[0],
            model=self._chunks if len(self._chunks) > 1 else self._chunks[0],
            num_microbatches=size(samples) // self._micro_batch,
            seq_length=samples["inputs"].shape[1],
            micro_batch_size=self._micro_batch,
            **self._boundaries,
            **how,
        )
        if memory:
            memory.end()
        return collected

    def total(self, terms: list[Tensor], count: int) -> Tensor:
        """This rank's part of so many terms of the loss, float64: their sums over all ranks count a label once."""
        if self.last and parallel_state.get_tensor_model_parallel_rank() == 0:
            return torch.stack(terms).double().sum(0)
        return torch.zeros(count, dtype=torch.float64, device=self._device)

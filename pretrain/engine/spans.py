"""What an engine does about the spans of heads (see growth.span): they stay between 0 and max, the host knows how long
they are, and they cost something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from numpy.typing import NDArray
from torch import Tensor

from growth.architecture import Architecture
from growth.span import seen as seen_by
from pretrain.engine.gradients import FlatGradients, reduce_together
from pretrain.engine.megatron import transformer_block
from pretrain.families.common.span_attention import SpanAttention
from pretrain.layout import Layout
from pretrain.layout.work import attending
from pretrain.losses import Term
from pretrain.losses.spans import cost_of_a_token, penalty_term


class Spans:
    """The spans of a model whose heads have some. All methods but `refresh` are of this rank alone.

    by_head: of every block, float32 [blocks, heads], in tokens, the same on every rank; zero without attention.
    """

    by_head: NDArray[np.float32]

    def __init__(self, arch: Architecture, layout: Layout, chunks: Sequence[Any], masters: Sequence[Tensor]) -> None:
        """chunks: those of this rank. masters: flat views of the fp32 spans that it owns."""
        assert arch.span
        self._arch, self._span, self._layout, self._masters = arch, arch.span, layout, masters
        pp_rank = parallel_state.get_pipeline_model_parallel_rank()
        tp_rank = parallel_state.get_tensor_model_parallel_rank()
        self._here: dict[int, SpanAttention] = {}
        for chunk, (_, numbers) in zip(chunks, layout.chunks(pp_rank), strict=True):
            for block, number in zip(transformer_block(chunk).layers, numbers, strict=True):
                if hasattr(block.self_attention, "core_attention"):
                    self._here[number] = block.self_attention.core_attention
        heads = arch.sizes["heads"] // layout.tp
        self._own = slice(heads * tp_rank, heads * (tp_rank + 1))
        self._total = torch.zeros((), device=next(chunks[0].parameters()).device)
        self._slope = 0.0

    def penalise(self, penalty: float) -> Term:
        """From here on gradients are of a loss that has this term too."""
        heads = self._arch.sizes["heads"]
        self._slope = cost_of_a_token(penalty, heads) * self._span.max
        return penalty_term(penalty, heads, lambda: self._total)

    def add_gradient(self, gradients: FlatGradients) -> None:
        """That of the penalty, once a step: over all data-parallel ranks the sum is the whole of it."""
        for core in self._here.values():
            if core.span.requires_grad:
                gradients[core.span].add_(self._slope / self._layout.dp)

    def clamp(self) -> None:
        """Bring the masters back to where spans may be."""
        for master in self._masters:
            master.clamp_(0, 1)

    @torch.no_grad()
    def refresh(self) -> None:
        """Learn how long the spans are (collective over the ranks of a model; the host waits for the device)."""
        table = torch.zeros(self._arch.depth, self._arch.sizes["heads"], device=self._total.device)
        for number, core in self._here.items():
            table[number, self._own] = core.span.float() * self._span.max
        if self._layout.tp * self._layout.pp > 1:
            reduce_together([table], parallel_state.get_model_parallel_group())
        self._total, self.by_head = table.sum(), table.cpu().numpy()
        for number, core in self._here.items():
            core.longest = float(self.by_head[number].max())  # of all tensor-parallel ranks, which share a memory

    def keys(self, seq_len: int, seen: float | None) -> list[tuple[float, float]]:
        """With how many keys attention computes for a token in each block, and of how many tokens it has keys: see
        pretrain.layout.work.Seen. seen: what there is, in the mean; None: all of the sample."""
        there = seq_len if seen is None else seen
        return [seen_by(float(longest), self._span.ramp, seq_len, there) for longest in self.by_head.max(1)]

    def figures(self) -> dict[str, float]:
        """For metrics: the mean and the longest of each block with attention, counted from 0, in tokens."""
        by_block = {number - 1: self.by_head[number - 1] for number in attending(self._arch)}
        means = {f"span_mean_{block}": float(spans.mean()) for block, spans in by_block.items()}
        return means | {f"span_max_{block}": float(spans.max()) for block, spans in by_block.items()}

    def of_heads(self) -> dict[str, float]:
        """For the metrics of a validation: that of each head of these blocks."""
        blocks = [number - 1 for number in attending(self._arch)]
        return {f"span_{n}_{head}": float(span) for n in blocks for head, span in enumerate(self.by_head[n])}

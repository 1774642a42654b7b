"""Megatron-core's `core_attention` whose heads learn how far they see: see growth.span and pretrain.kernels.span."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from growth.span import Span, before, reach
from pretrain.families.common import dropout, memory
from pretrain.families.common.attention import CoreAttention
from pretrain.families.common.documents import Documents
from pretrain.kernels import fused
from pretrain.kernels.span import Within, attend_spans


class SpanAttention(CoreAttention):
    """Causal attention of the local heads, each within its span.

    span: z / max of each of them, a parameter. longest: z of the one of the layer, on whatever rank, that sees
    farthest, or more, in tokens: keys that it does not reach are not computed with, nor made of a memory. It is a
    number of the host's, which whoever changes the parameter sets.
    """

    def __init__(self, config: TransformerConfig, *args: Any, spans: Span, **how: Any) -> None:
        super().__init__(config, *args, **how)
        self.spans, self.longest = spans, float(spans.max)
        heads = config.num_attention_heads // config.tensor_model_parallel_size
        self.span = torch.nn.Parameter(torch.zeros(heads, dtype=config.params_dtype))

    @property
    def reach(self) -> int:  # type: ignore[override]
        """In whole blocks."""
        return before(self.longest, self.spans.ramp)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, apart: Documents | None) -> Tensor:
        p = self.dropout if self.training else 0.0
        within = Within(
            ramp=self.spans.ramp,
            reach=reach(self.longest, self.spans.ramp),
            scale=self.scale or q.shape[-1] ** -0.5,
            begins=memory.begins(q.shape[2], None if apart is None else apart.begins),
            drop=dropout.of_weights(p, self.layer, q.shape[1]),
        )
        compiled = self.fused and fused.observer is None
        return attend_spans(q, k, v, self.span.float() * self.spans.max, within, compiled=compiled)

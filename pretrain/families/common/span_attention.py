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

    def forward(
        self,
        query_SBNH: Tensor,
        key_SBGH: Tensor,
        value_SBGH: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: Documents | None = None,
        **_: Any,
    ) -> Tensor:
        """Attend; returns [S, B, N*H]. Where there are more keys than queries, the first of them are of a memory.
        packed_seq_params: documents that do not see each other."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query_SBNH, key_SBGH, value_SBGH))
        p = self.dropout if self.training else 0.0
        within = Within(
            ramp=self.spans.ramp,
            reach=reach(self.longest, self.spans.ramp),
            scale=self.scale or q.shape[-1] ** -0.5,
            begins=memory.begins(q.shape[2], None if packed_seq_params is None else packed_seq_params.begins),
            drop=dropout.of_weights(p, self.layer, q.shape[1]),
        )
        compiled = self.fused and fused.observer is None
        out_BNSH = attend_spans(q, k, v, self.span.float() * self.spans.max, within, compiled=compiled)
        out_SBNH = out_BNSH.permute(2, 0, 1, 3)
        return out_SBNH.reshape(*out_SBNH.shape[:2], -1)

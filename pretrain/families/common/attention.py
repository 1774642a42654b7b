"""Megatron-core's `core_attention` on torch's scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor


class CoreAttention(torch.nn.Module):
    """Attention of the local heads, flash where torch has it, on any device.

    Shapes: S sequence, B micro-batch, N local query heads, G local kv groups, H head_dim.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query_SBNH: Tensor,
        key_SBGH: Tensor,
        value_SBGH: Tensor,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Attend; returns [S, B, N*H]. attention_mask (True = hidden) is used only where the mask is not causal."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query_SBNH, key_SBGH, value_SBGH))
        out_BNSH = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if self.causal or attention_mask is None else ~attention_mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out_SBNH = out_BNSH.permute(2, 0, 1, 3)
        return out_SBNH.reshape(*out_SBNH.shape[:2], -1)

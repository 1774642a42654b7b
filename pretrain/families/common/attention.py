"""Megatron-core's `core_attention` on torch's scaled_dot_product_attention.

With dropout, on CUDA torch's kernel drops as well, as Megatron-LM's does: what it drops is a function of the step, the
micro-batch, the layer and the tensor-parallel rank, so another layout drops other weights, as many of them. Elsewhere
the weights are computed, and dropped by address.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig, attention
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from pretrain.families.common import dropout, memory
from pretrain.families.common.documents import Documents
from pretrain.kernels.dropout import Drop, Dropout, drop_weights
from pretrain.kernels.varlen import attend_inside


class SelfAttention(attention.SelfAttention):
    """Megatron-core's, whose keys and values may be of a memory and the segment behind it.

    remembered: the memory, normed as the segment is, where its layer has one: as much of it as is seen.
    """

    remembered: Tensor | None = None

    def get_query_key_value_tensors(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Queries [S, B, N, H], keys and values [M + S, B, G, H]."""
        parts = super().get_query_key_value_tensors(hidden_states, *args, **kwargs)
        if self.remembered is None:
            return parts
        _, *before = super().get_query_key_value_tensors(self.remembered, *args, **kwargs)
        query, *own = parts
        return query, *(memory.joined(*pair) for pair in zip(before, own, strict=True))


class CoreAttention(torch.nn.Module):
    """Attention of the local heads, flash where torch has it, on any device. Where there are more keys than queries,
    the first of them are of a memory.

    fused: whether what lies between matrix products is kernels. reach: how many places before a sample are seen at
    most; None: all.

    Shapes: S sequence, B micro-batch, N local query heads, G local kv groups, H head_dim.
    """

    fused = False
    reach: int | None = None

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
        self.layer = layer_number
        self.causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query_SBNH: Tensor,
        key_SBGH: Tensor,
        value_SBGH: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: Documents | None = None,
        **_: Any,
    ) -> Tensor:
        """Attend; returns [S, B, N*H]. attention_mask (True = hidden) is used only where the mask is not causal.
        packed_seq_params: documents that do not see each other."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query_SBNH, key_SBGH, value_SBGH))
        out_BNSH = self.attend(q, k, v, None if self.causal else attention_mask, packed_seq_params)
        out_SBNH = out_BNSH.permute(2, 0, 1, 3)
        return out_SBNH.reshape(*out_SBNH.shape[:2], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, apart: Documents | None) -> Tensor:
        """The attention [B, N, S, H] of q [B, N, S, H], k and v [B, G, M + S, H]. mask: what is hidden, of a model that
        is not causal. apart: documents that do not see each other."""
        behind = self.causal and k.shape[2] > q.shape[2]
        if behind:
            mask, apart = memory.unseen(q.shape[2], None if apart is None else apart.begins), None
        p = self.dropout if self.training else 0.0
        if p and not q.is_cuda and (drop := dropout.of_weights(p, self.layer, q.shape[1])):
            return self._by_address(q, k, v, mask if apart is None else apart.parted[:, None], drop)
        if apart is not None:
            return attend_inside(
                q,
                k,
                v,
                apart.starts,
                lambda: apart.parted,
                scale=self.scale,
                dropout_p=p if p and q.is_cuda and dropout.seed_fused(self.layer) else 0.0,
            )
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=~mask if mask is not None else causal_lower_right(q.shape[2], k.shape[2]) if behind else None,
            dropout_p=p if p and q.is_cuda and dropout.seed_fused(self.layer) else 0.0,
            is_causal=self.causal and not behind,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    def _by_address(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: Drop, beside: Tensor | None = None
    ) -> Tensor:
        """The attention [B, N, S, H] of q [B, N, S, H], k and v [B, G, M + S, H], with its weights as a tensor.

        beside: what scores have beside q k^T, [B, N, S, M + S], -inf where a query does not see a key.
        """
        groups, keys = k.shape[1:3]
        length = q.shape[2]
        q = q.unflatten(1, (groups, -1))
        score = (q @ k.unsqueeze(2).transpose(-1, -2)) * (self.scale or q.shape[-1] ** -0.5)  # [B, G, N / G, S, M + S]
        if beside is not None:
            score = score + beside.view_as(score)
        elif self.causal:
            ahead = torch.ones(length, keys, dtype=torch.bool, device=q.device).triu(1 + keys - length)
            score = score.masked_fill(ahead, -torch.inf)
        if mask is not None:
            score = score.masked_fill(mask.unsqueeze(1), -torch.inf)
        weights = score.softmax(-1, dtype=torch.float32).to(q.dtype).flatten(1, 2)
        weights = Dropout.apply(weights, drop, drop_weights if self.fused else drop_weights.eager)
        return (weights.unflatten(1, (groups, -1)) @ v.unsqueeze(2)).flatten(1, 2)

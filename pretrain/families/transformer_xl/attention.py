"""Attention by distance (Dai et al. 2019, section 3.3 and appendix B), as Megatron-core's `core_attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from pretrain.families.common import dropout, memory
from pretrain.families.common.attention import CoreAttention
from pretrain.families.common.documents import Documents
from pretrain.families.transformer_xl.distances import sinusoid

KERNEL = 8  # of which the width of a head is a multiple in torch's kernels; zeros make it one


class RelativeAttention(CoreAttention):
    """Attention of the local heads, with their u (r_w_bias), v (r_r_bias) and W_R (r_net).

    What distances add to the scores is a tensor [B, N, S, K], and so are the weights where torch has no kernel that
    takes it. No tensor has a channel for each pair of a query and a key.

    Shapes: S queries; K keys, the last S of them of the queries' own tokens, those before of a memory; B micro-batch, N
    local heads, H head_dim, C channels of the sinusoid.
    """

    def __init__(self, channels: int, /, config: TransformerConfig, **given: Any) -> None:
        super().__init__(config, **given)
        heads = config.num_attention_heads // parallel_state.get_tensor_model_parallel_world_size()
        self.heads, self.channels = heads, channels
        assert config.kv_channels
        wide = heads * config.kv_channels
        self.r_w_bias = torch.nn.Parameter(torch.empty(wide))
        self.r_r_bias = torch.nn.Parameter(torch.empty(wide))
        self.r_net = torch.nn.Parameter(torch.empty(wide, channels))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, apart: Documents | None) -> Tensor:
        queries, keys = q.shape[2], k.shape[2]
        hidden = None
        if keys > queries:
            hidden = memory.unseen(queries, None if apart is None else apart.begins)
        if hidden is None:
            hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1 + keys - queries)
        if keys == queries and apart is not None:
            hidden = hidden | apart.parted[:, None]
        scores = self._of_distances(q, keys).masked_fill(hidden, -torch.inf)
        q = q + self.r_w_bias.view(self.heads, 1, -1)
        p = self.dropout if self.training else 0.0
        if p and not q.is_cuda and (drop := dropout.of_weights(p, self.layer, self.heads)):
            return self._by_address(q, k, v, None, drop, beside=scores)
        p = p if p and q.is_cuda and dropout.seed_fused(self.layer) else 0.0
        size = q.shape[-1]
        if q.is_cuda and size % KERNEL:
            q, k, v = (F.pad(x, (0, -size % KERNEL)) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scores, p, scale=self.scale)[..., :size]

    def _of_distances(self, q: Tensor, keys: int) -> Tensor:
        """scale (q_i + v) . W_R r_(i - j), [B, N, S, K], of queries [B, N, S, H].

        The product has a column for each distance, from the largest, K - 1, down to one more than there is, -1. Row i
        of what is wanted begins S - 1 - i columns later: since a row is one longer than it has to be, this is S - 1 + i
        K elements after the first one, and the whole a view. What lies ahead of a query is of no account.
        """
        distance = torch.arange(keys - 1, -2, -1, device=q.device)
        r_KC = sinusoid(distance, self.channels).to(self.r_net.dtype)
        r_NHK = (self.r_net @ r_KC.t()).unflatten(0, (self.heads, -1))
        assert self.scale is not None
        from_distance = (q + self.r_r_bias.view(self.heads, 1, -1)) * self.scale
        product = torch.einsum("bnsh,nhk->bnsk", from_distance, r_NHK)  # unlike matmul it has no r for each sample
        queries = q.shape[2]
        return product.flatten(2).narrow(2, queries - 1, queries * keys).unflatten(2, (queries, keys))

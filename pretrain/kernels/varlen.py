"""Causal attention inside documents that lie end to end, each seeing itself alone.

On CUDA one variable-length flash kernel (Dao 2023, "FlashAttention-2") does all documents of a micro-batch; elsewhere
each is a causal call of its own. Where the kernel is missing (fp32, odd widths of a head, cards before Ampere), a mask
hides the other documents: nothing is saved then, and the host does not wait to learn of lengths.

Shapes: B micro-batch, N local query heads, G local kv groups, S sequence, H head_dim, K documents of a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.documents import cu_seqlens, lengths

WIDEST = 256  # head that the kernel has
AMPERE = (8, 0)


def attend_inside(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    parted: Callable[[], Tensor],
    *,
    scale: float | None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of q [B, N, S, H] to k and v [B, G, S, H] inside documents that begin at `starts`, [B, K]:
    [B, N, S, H].

    parted: where two tokens are of different documents, bool [B, S, S], for the mask where it takes one. dropout_p: of
    an attention weight; on CUDA alone.
    """
    if not q.is_cuda:
        return torch.stack([_each(*x, scale) for x in zip(q, k, v, lengths(starts, q.shape[2]), strict=True)])
    if has_kernel(q):
        return _flash(q, k, v, starts, scale, dropout_p)
    ahead = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    seen = ~(parted() | ahead)[:, None]
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, seen, dropout_p, scale=scale, enable_gqa=gqa)


def has_kernel(q: Tensor) -> bool:
    """Whether this CUDA device has the kernel for queries of this type and width."""
    wide = q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0
    return q.element_size() == 2 and wide and torch.cuda.get_device_capability() >= AMPERE


def _each(q: Tensor, k: Tensor, v: Tensor, sizes: list[int], scale: float | None) -> Tensor:
    """One sample, a document at a time: q [N, S, H], k and v [G, S, H]."""
    gqa = q.shape[0] != k.shape[0]
    queries, keys, values = (x.unsqueeze(0).split(sizes, 2) for x in (q, k, v))
    outs = [
        F.scaled_dot_product_attention(*document, is_causal=True, scale=scale, enable_gqa=gqa)
        for document in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outs, 2)[0]


def _flash(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, scale: float | None, dropout_p: float) -> Tensor:
    """All samples end to end; what torch.nn.attention.varlen calls, which has no dropout.

    The kernel is told that no document is longer than a sample: to know more, the host would have to wait.
    """
    batch, _, length, _ = q.shape
    bounds = cu_seqlens(starts, length)
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    out, *_ = torch.ops.aten._flash_attention_forward(
        *flat, bounds, bounds, length, length, dropout_p, True, False, scale=scale
    )
    return out.unflatten(0, (batch, length)).transpose(1, 2)

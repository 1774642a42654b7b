"""Causal attention whose heads see a learned number of tokens back: see growth.span.

A key at distance x has the weight m(x) = clip((ramp + z - x) / ramp, 0, 1) for a head of span z. Blocks of 64 keys that
no head reaches are not computed with, and nothing of [S, S] is ever held. At a corner of m its derivative is zero.

The blocks of queries are gone through one after the other, and their scores are computed again for the backward pass,
as in FlashAttention (Dao et al. 2022). On CUDA one compiled kernel of torch's flex attention does so, unless attention
weights are dropped, which that cannot do; it has no backward pass on a CPU.

Shapes: B micro-batch, N local query heads, G local kv groups, S queries, K keys (the last S of which are at the
queries' own places), H head_dim; C queries and W keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from growth.span import BLOCK
from pretrain.kernels.dropout import Drop, kept

TILE = 128
"""Queries and keys of a block of flex attention: its kernels' own default."""
NARROWEST = 16
"""Channels of a head that its kernels have at least."""


@dataclass(frozen=True)
class Within:
    """What attention may see. ramp: see above. reach: how far back a token sees at most. scale: of the scores.
    begins: of each query the first key of its document, int [B, S]; None: documents see each other. drop: what is
    dropped of the weights; None: nothing."""

    ramp: int
    reach: int
    scale: float
    begins: Tensor | None = None
    drop: Drop | None = None


def attend_spans(q: Tensor, k: Tensor, v: Tensor, span: Tensor, within: Within, *, compiled: bool = False) -> Tensor:
    """The attention [B, N, S, H] of q [B, N, S, H] to k and v [B, G, K, H].

    span: z of each head in tokens, [N], none below 0; within.reach is for the longest of them, or more. compiled:
    whether kernels can be compiled for a CUDA device.
    """
    if q.is_cuda and compiled and within.drop is None and q.shape[-1] >= NARROWEST:
        return flex(q, k, v, span, within)
    out: Tensor = InBlocks.apply(q, k, v, span, within)
    return out


def flex(q: Tensor, k: Tensor, v: Tensor, span: Tensor, within: Within, *, compiled: bool = True) -> Tensor:
    """`attend_spans` by torch's flex attention. compiled: as one kernel; else, for tests, with all of [S, S] held."""
    ramp, before, begins, z = within.ramp, k.shape[2] - q.shape[2], within.begins, span.detach()

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = i + before - j
        near = (distance >= 0) & (distance < ramp + z[h])
        return near if begins is None else near & (j >= begins[b, i])

    def faded(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        beyond = i + before - j - span[h]
        on_ramp = (beyond > 0) & (beyond < ramp)
        return torch.where(on_ramp, score + torch.where(on_ramp, (ramp - beyond) / ramp, 1.0).log(), score)

    near = copy(_near(q.shape[2], k.shape[2], within.reach, q.device))
    near.mask_mod = seen
    run: Any = _compiled_flex() if compiled else flex_attention
    out: Tensor = run(q, k, v, faded, near, within.scale, enable_gqa=q.shape[1] != k.shape[1])
    return out


@lru_cache(maxsize=64)
def _near(queries: int, keys: int, reach: int, device: torch.device) -> BlockMask:
    """Which blocks of keys, of the kernel's own size, blocks of queries may reach."""
    rows = torch.arange(ceil(queries / TILE), device=device)
    last = (torch.minimum((rows + 1) * TILE, torch.tensor(queries, device=device)) - 1 + keys - queries) // TILE
    first = (rows * TILE + keys - queries - reach).clamp(min=0) // TILE
    count = (last - first + 1).to(torch.int32)
    columns = torch.arange(ceil(keys / TILE), device=device)
    indices = (first[:, None] + columns).clamp(max=len(columns) - 1).to(torch.int32)
    lengths = (queries, keys)
    return BlockMask.from_kv_blocks(count[None, None], indices[None, None], BLOCK_SIZE=TILE, seq_lengths=lengths)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False)


class InBlocks(torch.autograd.Function):
    """`attend_spans` block by block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, span: Tensor, within: Within) -> Tensor:
        blocks = _Blocks(q, k, span, within)
        out = torch.empty_like(q)
        for rows, columns, inside in blocks:
            weights = blocks.weights(rows, columns, inside)
            if within.drop is not None:
                weights *= blocks.kept(rows, columns)
            out[:, :, rows] = (blocks.grouped(weights.to(v.dtype)) @ v[:, :, columns]).view_as(out[:, :, rows])
        ctx.save_for_backward(q, k, v, span, out)
        ctx.within = within
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, span, out = ctx.saved_tensors
        blocks, drop = _Blocks(q, k, span, ctx.within), ctx.within.drop
        grad_q, grad_span = torch.empty_like(q), torch.zeros_like(span, dtype=blocks.wide)
        grad_k, grad_v = (torch.zeros_like(x, dtype=blocks.wide) for x in (k, v))
        own = (grad.to(blocks.wide) * out).sum(-1, keepdim=True)  # what a score's gradient is measured from
        for rows, columns, inside in blocks:
            weights = blocks.weights(rows, columns, inside)
            grad_out = blocks.grouped(grad[:, :, rows])
            of_weights = (grad_out @ v[:, :, columns].mT).view_as(weights).to(blocks.wide)
            dropped = weights
            if drop is not None:
                kept = blocks.kept(rows, columns)
                dropped, of_weights = weights * kept, of_weights * kept
            grad_v[:, :, columns] += blocks.grouped(dropped.to(v.dtype)).mT @ grad_out
            of_score = of_weights.sub_(own[:, :, rows]).mul_(weights)
            grad_span += (of_score * blocks.slope[inside]).sum((0, 2, 3))
            of_score = blocks.grouped(of_score.to(q.dtype))
            grad_q[:, :, rows] = (of_score @ k[:, :, columns]).view_as(q[:, :, rows]).mul_(ctx.within.scale)
            grad_k[:, :, columns] += of_score.mT @ blocks.queries(rows)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_span.to(span.dtype), None


class _Blocks:
    """The blocks of queries with the keys that their heads may reach, and what of a block follows from its place."""

    def __init__(self, q: Tensor, k: Tensor, span: Tensor, within: Within) -> None:
        self.q, self.k, self.within = q, k, within
        self.wide = torch.promote_types(q.dtype, torch.float32)
        self.before = k.shape[2] - q.shape[2]  # so many keys lie before the first query's own
        self.far = BLOCK * ceil(min(within.reach, k.shape[2]) / BLOCK)
        # Distances are the same in every block: of query c and key w, counted from `far` before the first query's own.
        places = torch.arange(self.far + BLOCK, device=q.device)
        distance = places[self.far :, None] - places  # [C, far + C]
        z = span.detach().to(self.wide)[:, None, None]
        mask = ((within.ramp + z - distance) / within.ramp).clamp_(0, 1).masked_fill_(distance < 0, 0)
        self.log_mask = mask.log()  # [N, C, far + C]
        self.slope = torch.where((mask > 0) & (mask < 1), 1 / (within.ramp * mask), 0)  # of log_mask along z

    def __iter__(self) -> Iterator[tuple[slice, slice, tuple[slice, slice, slice]]]:
        """Of each block its queries, its keys, and where in `log_mask` they are."""
        length = self.q.shape[2]
        for first in range(0, length, BLOCK):
            last, own = min(first + BLOCK, length), first + self.before
            start = max(0, own - self.far)
            columns = slice(start, last + self.before)
            skipped = self.far - (own - start)
            inside = slice(None), slice(last - first), slice(skipped, skipped + columns.stop - start)
            yield slice(first, last), columns, inside

    def grouped(self, x: Tensor) -> Tensor:
        """[B, N, C, ...] as [B, G, N / G * C, ...]: what shares its keys, in one matrix."""
        return x.unflatten(1, (self.k.shape[1], -1)).flatten(2, 3)

    def queries(self, rows: slice) -> Tensor:
        """Of a block, times the scale of the scores, [B, G, N / G * C, H]."""
        return self.grouped(self.q[:, :, rows] * self.within.scale)

    def weights(self, rows: slice, columns: slice, inside: tuple[slice, slice, slice]) -> Tensor:
        """Of the keys in the attention of the queries, [B, N, C, W]."""
        product = (self.queries(rows) @ self.k[:, :, columns].mT).to(self.wide)
        score = product.view(*self.q[:, :, rows].shape[:3], -1).add_(self.log_mask[inside])
        if (begins := self.within.begins) is not None:
            keys = torch.arange(columns.start, columns.stop, device=score.device)
            score = score.masked_fill_((keys < begins[:, rows, None])[:, None], -torch.inf)
        return score.softmax(-1)

    def kept(self, rows: slice, columns: slice) -> Tensor:
        """What the weights of a block are multiplied by where some are dropped, [B, N, C, W]."""
        assert self.within.drop is not None
        keys, p, first = self.within.drop
        heads, length = self.q.shape[1:3]
        numbers = torch.arange(first * length, (first + heads) * length, dtype=torch.int32, device=keys.device)
        numbers = numbers.view(heads, length)[:, rows]
        stays = kept(keys[:, None, None], numbers, columns.stop - columns.start, p, columns.start)
        return stays * (1 / (1 - p))

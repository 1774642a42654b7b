"""Queries, keys and values of an attention, cut from one projection, and rotated by their positions (Su et al. 2021).

Shapes: S sequence, B micro-batch, G local kv groups, N local query heads, H head_dim. A projection holds whole groups,
one after the other: [S, B, G, (N / G + 2) * H], the query heads of a group, then its key and its value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pretrain.kernels.fused import kernel

_tables = WeakIdKeyDictionary()  # angles -> their table: Megatron hands the same angles to every layer


def table(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the angles that Megatron gives, [S, 1, 1, H] with equal halves, as [S, 1, 1, 2, H / 2].

    The first half of the sine is negative: an element is turned towards what it is turned with.
    """
    if (tables := _tables.get(angles)) is None or tables[0].dtype != dtype:
        halves = angles.unflatten(-1, (2, -1))
        sin = halves.sin()
        sin[..., 0, :].neg_()
        tables = _tables[angles] = (halves.cos().to(dtype), sin.to(dtype))
    return tables


def rotated_parts(mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [S, B, N, H], rotated keys and values [S, B, G, H] of a projection; cos, sin: see `table`.

    Each has memory of its own, in the order of its shape: the projection need not be kept for the sake of a third.
    """
    return _RotatedParts.apply(mixed, cos, sin)


class _RotatedParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return cut_and_rotate(mixed, cos, sin)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None]:
        return rotate_back_and_join(query, key, value, *ctx.saved_tensors), None, None


@kernel()
def cut_and_rotate(mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `rotated_parts`."""
    size = 2 * cos.shape[-1]
    query, key, value = mixed.split((mixed.shape[-1] - 2 * size, size, size), dim=-1)
    query, key = (
        (x * cos + x.flip(-2) * sin).flatten(-2)
        for x in (x.reshape(*x.shape[:2], -1, 2, size // 2) for x in (query, key))
    )
    return query, key, value.clone(memory_format=torch.contiguous_format)


@kernel()
def rotate_back_and_join(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of a projection from those of its parts."""
    parts = [
        (x * cos - x.flip(-2) * sin).reshape(*key.shape[:3], -1)
        for x in (x.unflatten(-1, (2, -1)) for x in (query, key))
    ]
    return torch.cat((*parts, value), dim=-1)

"""Dropout (Srivastava et al. 2014) whose masks are a function of an address, so that none has to be kept.

Whether an element is dropped depends on the key of its sample at this place of the model, on the number of its row and
on its column, and on nothing else: not on who computes it, in which order, or how often. The backward pass, and a
forward pass that is made again, draw the mask again.

The generator is a hash of 32-bit integers, two multiplications an element. A row's number and the first half of the
sample's key give, by the finaliser `lowbias32` (Wellons 2018, "Prospecting for hash functions") with another word of
the key inside, the start of the row; from there columns are a Weyl sequence (multiples of the golden ratio), each
element of which goes through the first two rounds of the same finaliser. What decides is whether the result lies below
p: its high bits, which depend on all of those before. 128 bits of key make two places alike only if they are one.

Shapes: S sequence, B micro-batch, D channels, N local heads. Keys are int32 [B, 4].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretrain.kernels.activation import sum_of_rows
from pretrain.kernels.fused import Kernel, kernel


def _signed(word: int) -> int:
    """The int32 with these bits."""
    return word - (1 << 32 if word >> 31 else 0)


GOLDEN, FIRST, SECOND = (_signed(word) for word in (0x9E3779B9, 0x7FEB352D, 0x846CA68B))


class Drop(NamedTuple):
    """What is dropped at one place of a model.

    keys: of each sample of the micro-batch there, int32 [B, 4]. p: the probability. first: the number of the first row
    (position, or attention head) of those that this rank holds.
    """

    keys: Tensor
    p: float
    first: int


class DropPart(NamedTuple):
    """What is dropped of some columns of what enters a linear layer. column: the number of the first; the rest as in
    `Drop`."""

    keys: Tensor
    p: float
    first: int
    column: int


def kept(keys: Tensor, rows: Tensor, columns: int, p: float, column: int = 0) -> Tensor:
    """Which elements stay, bool [..., columns], of rows with these keys, int32 [..., 4], and numbers, int32 [...], from
    number `column` on."""
    word, second, third, fourth = keys.unbind(-1)
    start = rows * GOLDEN + word
    start = (start ^ (start >> 16 & 0xFFFF)) * FIRST + second
    start = (start ^ (start >> 15 & 0x1FFFF)) * SECOND + third
    start = start ^ (start >> 16 & 0xFFFF)
    x = start[..., None] + torch.arange(column, column + columns, dtype=torch.int32, device=keys.device) * GOLDEN
    x = (x ^ (x >> 16 & 0xFFFF)) * FIRST + fourth[..., None]
    x = (x ^ (x >> 15 & 0x1FFFF)) * SECOND
    return x >= round(p * 2**32) - 2**31


def _numbers(first: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.int32, device=like.device)


@kernel()
def drop_channels(x: Tensor, keys: Tensor, p: float, first: int) -> Tensor:
    """Of a stream [S, B, D], whose first position is number `first` of the sample."""
    rows = _numbers(first, x.shape[0], x)[:, None]
    return x * (1 / (1 - p)) * kept(keys, rows, x.shape[2], p)


@kernel()
def drop_part(x: Tensor, keys: Tensor, p: float, first: int, column: int) -> Tensor:
    """Of what enters a linear layer, [S, B, in], whose first position and column have these numbers."""
    rows = _numbers(first, x.shape[0], x)[:, None]
    return x * (1 / (1 - p)) * kept(keys, rows, x.shape[2], p, column)


@kernel()
def drop_weights(x: Tensor, keys: Tensor, p: float, first: int) -> Tensor:
    """Of the weights of an attention, [B, N, S, S], whose first head is number `first` of the layer."""
    heads, length = x.shape[1:3]
    rows = _numbers(first * length, heads * length, x).view(heads, length)
    return x * (1 / (1 - p)) * kept(keys[:, None, None], rows, x.shape[3], p)


@kernel()
def add_bias_drop_channels(x: Tensor, bias: Tensor, keys: Tensor, p: float, first: int) -> Tensor:
    """`drop_channels` of x + bias."""
    return drop_channels.eager(x + bias, keys, p, first)


class Dropout(torch.autograd.Function):
    """apply(x, drop, run) is x with a part of it dropped and the rest larger by 1 / (1 - p).

    run: drop_channels, drop_weights or, with a DropPart, drop_part, or the eager one of any.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Drop | DropPart, run: Kernel) -> Tensor:
        ctx.drop, ctx.run = drop, run
        return run(x, *drop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.run(grad, *ctx.drop), None, None  # it is linear, and its own transpose


class BiasDropout(torch.autograd.Function):
    """apply(x, bias, drop) is `Dropout` of x + bias, as kernels; x is [S, B, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, drop: Drop) -> Tensor:
        ctx.drop = drop
        return add_bias_drop_channels(x, bias, *drop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad = drop_channels(grad, *ctx.drop)
        return grad, sum_of_rows(grad) if ctx.needs_input_grad[1] else None, None

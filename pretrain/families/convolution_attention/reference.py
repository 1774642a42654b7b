"""Convolution Attention on logical tensors. Shape suffixes as in pretrain.families.common.reference; S and D are those
of a level."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.data.documents import in_units, parted, positions
from pretrain.data.samples import Samples
from pretrain.families.common.reference import Reference, Weights
from pretrain.families.convolution_attention.padding import is_text
from pretrain.families.convolution_attention.table import (
    BLOCKS,
    COMPRESSORS,
    EMBEDDING,
    EXPANDERS,
    HEAD,
    NORM,
    POSITIONS,
    STREAMS,
    TAPS,
)
from pretrain.losses import Outputs


def _norm(weight: Weights, x_BSD: Tensor, name: str) -> Tensor:
    eps = weight.arch.scalars["norm_eps"]
    return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)


def _embed(weight: Weights, samples: Samples) -> Tensor:
    x_BSD = weight(EMBEDDING)[samples["inputs"]] + weight(POSITIONS)[positions(samples)]
    text_BS = is_text(samples)
    return x_BSD if text_BS is None else x_BSD * text_BS[..., None]


def _attention(level: int, weight: Weights, number: int, x_BSD: Tensor, samples: Samples) -> Tensor:
    layer, heads, stream = f"layers.{number}.", weight.arch.sizes["heads"], STREAMS[level]
    h_BSD = _norm(weight, x_BSD, layer + "attention_norm.weight")
    q, k, v = (
        (h_BSD @ weight(f"{layer}attention.{part}.weight").T).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    scale = weight.arch.scalars["softmax_scale"] * stream.width**-0.5  # of heads as many times as wide
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    if (apart := parted(in_units(samples, stream.tokens))) is not None:
        hidden = hidden | apart[:, None]
    out = (q @ k.transpose(-1, -2) * scale).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2) @ weight(layer + "attention.out.weight").T


def _mlp(weight: Weights, number: int, x_BSD: Tensor, samples: Samples) -> Tensor:
    h_BSD = _norm(weight, x_BSD, f"layers.{number}.mlp_norm.weight")
    inner = F.gelu(h_BSD @ weight(f"layers.{number}.mlp.up.weight").T, approximate="tanh")
    return inner @ weight(f"layers.{number}.mlp.down.weight").T


def _compress(weight: Weights, number: int, x_BSD: Tensor) -> Tensor:
    """A convolution over the sequence: a matrix [2 D, D x 4] that multiplies four units in a row."""
    stacked = x_BSD.unflatten(1, (-1, TAPS)).transpose(2, 3).flatten(2)
    return stacked @ weight(f"layers.{number}.compress.weight").T


def _expand(weight: Weights, number: int, x_BSD: Tensor) -> Tensor:
    """A transposed convolution: a matrix [D / 2 x 4, D] that makes four units in a row."""
    stacked = x_BSD @ weight(f"layers.{number}.expand.weight").T
    return stacked.unflatten(-1, (-1, TAPS)).transpose(2, 3).flatten(1, 2)


def _head(weight: Weights, x_BSD: Tensor) -> Outputs:
    """The logits of the words, [B, S, V]."""
    return {"words": _norm(weight, x_BSD, NORM) @ weight(HEAD).T}


REFERENCE = Reference(
    _embed,
    {kind: (partial(_attention, level), _mlp) for level, kind in enumerate(BLOCKS)},
    _head,
    between={**dict.fromkeys(COMPRESSORS, _compress), **dict.fromkeys(EXPANDERS, _expand)},
)

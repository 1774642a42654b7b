"""A decoder on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from pretrain.data.samples import Samples
from pretrain.families.common.decoder.table import BIASES, EMBEDDING, FINAL_NORM, HEAD, KEY, QUERY, has
from pretrain.families.common.reference import Reference, Remembering, Weights, attention, by_kind, rotary
from pretrain.losses import Outputs


def _norm(weight: Weights, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
    eps = weight.arch.scalars["norm_eps"]
    return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)


def _norm_heads(weight: Weights, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
    """Queries or keys [B, S, N*H], each head of them normed over its channels."""
    return _norm(weight, x_BSD.unflatten(-1, (-1, weight.arch.sizes["head_dim"])), name).flatten(2)


def _words(weight: Weights) -> Callable[[str], torch.Tensor]:
    """How the embedding is read: once where it is the head too."""
    return weight.kept if weight.arch.table.tied else weight


def _embed(weight: Weights, samples: Samples) -> torch.Tensor:
    return _words(weight)(EMBEDDING)[samples["inputs"]]


def _attention(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"model.layers.{number}."
    seen_BTD = samples.behind(x_BSD) if isinstance(samples, Remembering) else x_BSD
    h_BTD = _norm(weight, seen_BTD, layer + "input_layernorm.weight")
    q, k, v = (h_BTD @ weight(f"{layer}self_attn.{p}_proj.weight").T for p in "qkv")
    if has(weight.arch.table, BIASES[0]):
        q, k, v = (x + weight(layer + bias) for x, bias in zip((q, k, v), BIASES, strict=True))
    if weight.arch.table.head_norms:
        q, k = (_norm_heads(weight, x, layer + gain) for x, gain in ((q, QUERY), (k, KEY)))
    turn, q = rotary(weight.arch, x_BSD, samples), q[:, -x_BSD.shape[1] :]
    span_N = weight.spans(f"{layer}self_attn.q_proj.weight")
    mixed = attention(weight.arch, q, k, v, causal=True, turn=turn, samples=samples, span_N=span_N)
    return mixed @ weight(layer + "self_attn.o_proj.weight").T


def _mlp(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"model.layers.{number}."
    h_BSD = _norm(weight, x_BSD, layer + "post_attention_layernorm.weight")
    gate, up = (h_BSD @ weight(f"{layer}mlp.{p}_proj.weight").T for p in ("gate", "up"))
    return (F.silu(gate) * up) @ weight(layer + "mlp.down_proj.weight").T


def _head(weight: Weights, x_BSD: torch.Tensor) -> Outputs:
    """The logits of the words, [B, S, V]."""
    matrix = _words(weight)(EMBEDDING if weight.arch.table.tied else HEAD)
    return {"words": _norm(weight, x_BSD, FINAL_NORM) @ matrix.T}


REFERENCE = Reference(_embed, by_kind(_attention, _mlp), _head)

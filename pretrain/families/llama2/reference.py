"""LLaMA-2 on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.data.samples import Samples
from pretrain.families.common.reference import Reference, Weights, attention, by_kind, rotary
from pretrain.losses import Outputs


def _norm(weight: Weights, x_BSD: torch.Tensor, name: str) -> torch.Tensor:
    eps = weight.arch.scalars["norm_eps"]
    return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)


def _embed(weight: Weights, samples: Samples) -> torch.Tensor:
    return weight("model.embed_tokens.weight")[samples["inputs"]]


def _attention(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"model.layers.{number}."
    h_BSD = _norm(weight, x_BSD, layer + "input_layernorm.weight")
    q, k, v = (h_BSD @ weight(f"{layer}self_attn.{p}_proj.weight").T for p in "qkv")
    turn = rotary(weight.arch, x_BSD, samples)
    mixed = attention(weight.arch, q, k, v, causal=True, turn=turn, samples=samples)
    return mixed @ weight(layer + "self_attn.o_proj.weight").T


def _mlp(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"model.layers.{number}."
    h_BSD = _norm(weight, x_BSD, layer + "post_attention_layernorm.weight")
    gate, up = (h_BSD @ weight(f"{layer}mlp.{p}_proj.weight").T for p in ("gate", "up"))
    return (F.silu(gate) * up) @ weight(layer + "mlp.down_proj.weight").T


def _head(weight: Weights, x_BSD: torch.Tensor) -> Outputs:
    """The logits of the words, [B, S, V]."""
    return {"words": _norm(weight, x_BSD, "model.norm.weight") @ weight("lm_head.weight").T}


REFERENCE = Reference(_embed, by_kind(_attention, _mlp), _head)

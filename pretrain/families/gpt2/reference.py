"""GPT-2 on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.data.documents import positions
from pretrain.data.samples import Samples
from pretrain.families.common.reference import Reference, Weights, attention, by_kind
from pretrain.losses import Outputs


def _embed(weight: Weights, samples: Samples) -> torch.Tensor:
    ids_BS = samples["inputs"]
    return weight.kept("transformer.wte.weight")[ids_BS] + weight("transformer.wpe.weight")[positions(samples)]


def _attention(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"transformer.h.{number}."
    h_BSD = weight.layer_norm(x_BSD, layer + "ln_1")
    q, k, v = (weight.linear(h_BSD, f"{layer}attn.{p}_proj") for p in "qkv")
    span_N = weight.spans(f"{layer}attn.q_proj.weight")
    mixed = attention(weight.arch, q, k, v, causal=True, samples=samples, span_N=span_N)
    return weight.linear(mixed, layer + "attn.c_proj")


def _mlp(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"transformer.h.{number}."
    h_BSD = weight.layer_norm(x_BSD, layer + "ln_2")
    h = F.gelu(weight.linear(h_BSD, layer + "mlp.c_fc"), approximate="tanh")
    return weight.linear(h, layer + "mlp.c_proj")


def _head(weight: Weights, x_BSD: torch.Tensor) -> Outputs:
    """The logits of the words, [B, S, V]."""
    return {"words": weight.layer_norm(x_BSD, "transformer.ln_f") @ weight.kept("transformer.wte.weight").T}


REFERENCE = Reference(_embed, by_kind(_attention, _mlp), _head)

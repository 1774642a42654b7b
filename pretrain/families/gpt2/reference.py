"""GPT-2 on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.evaluate.box_values import Read
from pretrain.data.samples import Samples
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.families.common.reference import Weights, attention
from pretrain.losses import Outputs


def logits(read: Read, arch: Architecture, samples: Samples, dtype: torch.dtype) -> Outputs:
    """The logits of the words, [B, S, V]."""
    ids_BS = samples["inputs"]
    weight = Weights(read, arch, dtype)
    embedding_VD = weight("transformer.wte.weight")
    x_BSD = embedding_VD[ids_BS] + weight("transformer.wpe.weight")[: ids_BS.shape[1]]
    for kind, number in arch.blocks:
        layer = f"transformer.h.{number}."
        if kind in ATTENTION:
            h_BSD = weight.layer_norm(x_BSD, layer + "ln_1")
            q, k, v = (weight.linear(h_BSD, f"{layer}attn.{p}_proj") for p in "qkv")
            x_BSD = x_BSD + weight.linear(attention(arch, q, k, v, causal=True), layer + "attn.c_proj")
        if kind in MLP:
            h_BSD = weight.layer_norm(x_BSD, layer + "ln_2")
            h = F.gelu(weight.linear(h_BSD, layer + "mlp.c_fc"), approximate="tanh")
            x_BSD = x_BSD + weight.linear(h, layer + "mlp.c_proj")
    return {"words": weight.layer_norm(x_BSD, "transformer.ln_f") @ embedding_VD.T}

"""LLaMA-2 on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.evaluate.box_values import Read
from pretrain.data.samples import Samples
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.families.common.reference import Weights, attention, rotary
from pretrain.losses import Outputs


def logits(read: Read, arch: Architecture, samples: Samples, dtype: torch.dtype) -> Outputs:
    """The logits of the words, [B, S, V]."""
    ids_BS = samples["inputs"]
    weight = Weights(read, arch, dtype)
    eps = arch.scalars["norm_eps"]

    def norm(x_BSD: torch.Tensor, name: str) -> torch.Tensor:
        return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)

    turn = rotary(arch, ids_BS.shape[1], dtype)
    x_BSD = weight("model.embed_tokens.weight")[ids_BS]
    for kind, number in arch.blocks:
        layer = f"model.layers.{number}."
        if kind in ATTENTION:
            h_BSD = norm(x_BSD, layer + "input_layernorm.weight")
            q, k, v = (h_BSD @ weight(f"{layer}self_attn.{p}_proj.weight").T for p in "qkv")
            mixed = attention(arch, q, k, v, causal=True, turn=turn)
            x_BSD = x_BSD + mixed @ weight(layer + "self_attn.o_proj.weight").T
        if kind in MLP:
            h_BSD = norm(x_BSD, layer + "post_attention_layernorm.weight")
            gate, up = (h_BSD @ weight(f"{layer}mlp.{p}_proj.weight").T for p in ("gate", "up"))
            x_BSD = x_BSD + (F.silu(gate) * up) @ weight(layer + "mlp.down_proj.weight").T
    return {"words": norm(x_BSD, "model.norm.weight") @ weight("lm_head.weight").T}

"""LLaMA-2 on logical tensors, in plain torch: independent of any training stack, differentiable, in any precision.

Shape suffixes: B batch, S sequence, D hidden, N heads, G kv heads, Q queries of a kv head, H head_dim, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.box import Box
from growth.evaluate import Read


def logits(read: Read, arch: Architecture, ids_BS: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits [B, S, V] of token ids [B, S]; reads one layer at a time, each tensor once and whole, as a weight."""
    eps = arch.scalars["norm_eps"]

    def weight(name: str) -> torch.Tensor:
        return read("weight", name, Box.whole(arch.tensor(name).shape)).to(dtype)

    def norm(x_BSD: torch.Tensor, name: str) -> torch.Tensor:
        return x_BSD * torch.rsqrt(x_BSD.square().mean(-1, keepdim=True) + eps) * weight(name)

    cos_SH, sin_SH = rotary(arch, ids_BS.shape[1], dtype)
    x_BSD = weight("model.embed_tokens.weight")[ids_BS]
    for i in range(arch.layers):
        layer = f"model.layers.{i}."
        h_BSD = norm(x_BSD, layer + "input_layernorm.weight")
        q, k, v = (h_BSD @ weight(f"{layer}self_attn.{p}_proj.weight").T for p in "qkv")
        x_BSD = x_BSD + attention(arch, q, k, v, cos_SH, sin_SH) @ weight(layer + "self_attn.o_proj.weight").T
        h_BSD = norm(x_BSD, layer + "post_attention_layernorm.weight")
        gate, up = (h_BSD @ weight(f"{layer}mlp.{p}_proj.weight").T for p in ("gate", "up"))
        x_BSD = x_BSD + (F.silu(gate) * up) @ weight(layer + "mlp.down_proj.weight").T
    return norm(x_BSD, "model.norm.weight") @ weight("lm_head.weight").T


def rotary(arch: Architecture, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [S, H] of the rotate-half rotary embedding; the angles are float64 whatever the precision."""
    dim = arch.sizes["head_dim"]
    frequency = arch.scalars["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * torch.cat((frequency, frequency))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _turn(x_BNSH: torch.Tensor, cos_SH: torch.Tensor, sin_SH: torch.Tensor) -> torch.Tensor:
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * cos_SH + torch.cat((-second, first), dim=-1) * sin_SH


def attention(
    arch: Architecture,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_SH: torch.Tensor,
    sin_SH: torch.Tensor,
) -> torch.Tensor:
    """Causal grouped-query attention: q [B, S, N*H], k and v [B, S, G*H] -> [B, S, N*H]."""
    batch, length = q.shape[:2]
    heads, groups, dim = (arch.sizes[a] for a in ("heads", "kv_heads", "head_dim"))
    q = _turn(q.view(batch, length, heads, dim).transpose(1, 2), cos_SH, sin_SH)
    k = _turn(k.view(batch, length, groups, dim).transpose(1, 2), cos_SH, sin_SH)
    q = q.view(batch, groups, heads // groups, length, dim)
    score = (q @ k.unsqueeze(2).transpose(-1, -2)) * arch.scalars["softmax_scale"]  # [B, G, Q, S, S]
    score = score.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    v = v.view(batch, length, groups, dim).transpose(1, 2).unsqueeze(2)
    out = score.softmax(-1) @ v
    return out.reshape(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)

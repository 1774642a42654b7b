"""A decoder on Megatron-core's GPTModel: RMSNorm, SwiGLU, RoPE, MHA or GQA, and what its table has beside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from growth.architecture import Architecture
from growth.rotary import SCALING
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.decoder.table import BIASES, has
from pretrain.families.common.norm import FusedHeadRMSNorm, FusedRMSNorm, HeadRMSNorm, RMSNorm
from pretrain.kernels.activation import swiglu

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is a decoder's own in Megatron's TransformerConfig."""
    return {
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": has(arch.table, BIASES[0]),
        "qk_layernorm": arch.table.head_norms,
    }


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    """One pipeline chunk; where: see build_gpt."""
    model = build_gpt(
        arch,
        config,
        FusedRMSNorm if fused else RMSNorm,
        swiglu,
        fused=fused,
        head_norm=(FusedHeadRMSNorm if fused else HeadRMSNorm) if arch.table.head_norms else None,
        max_sequence_length=seq_len,
        share_embeddings_and_output_weights=arch.table.tied,
        position_embedding_type="rope",
        rotary_base=arch.scalars["rope_theta"],
        **where,
    )
    if arch.rope_frequencies or SCALING[0] in arch.scalars:
        own = model.rotary_pos_emb.inv_freq
        model.rotary_pos_emb.inv_freq = torch.tensor(arch.frequencies(), dtype=own.dtype, device=own.device)
    return model

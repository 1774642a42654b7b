"""LLaMA-2 on Megatron-core's GPTModel: RMSNorm, SwiGLU, RoPE, no biases, untied embeddings, MHA or GQA."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from growth.architecture import Architecture
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.norm import FusedRMSNorm, RMSNorm
from pretrain.kernels.activation import swiglu

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is LLaMA-2's own in Megatron's TransformerConfig."""
    return {"gated_linear_unit": True, "activation_func": F.silu, "add_bias_linear": False}


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    """One pipeline chunk; where: see build_gpt."""
    model = build_gpt(
        arch,
        config,
        FusedRMSNorm if fused else RMSNorm,
        swiglu,
        fused=fused,
        max_sequence_length=seq_len,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=arch.scalars["rope_theta"],
        **where,
    )
    if arch.rope_frequencies:
        own = model.rotary_pos_emb.inv_freq
        model.rotary_pos_emb.inv_freq = torch.tensor(arch.rope_frequencies, dtype=own.dtype, device=own.device)
    return model

"""The toy family on Megatron-core's GPTModel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from growth.architecture import Architecture
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.norm import RMSNorm

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


def config_fields(arch: Architecture) -> dict[str, object]:
    return {"activation_func": squared_relu, "add_bias_linear": False}


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    return build_gpt(
        arch,
        config,
        RMSNorm,
        lambda x, bias: squared_relu(x),
        fused=False,
        max_sequence_length=seq_len,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=arch.scalars["rope_theta"],
        **where,
    )

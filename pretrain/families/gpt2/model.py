"""GPT-2 on Megatron-core's GPTModel: LayerNorm, gelu, learned positions, biases, head tied to the embedding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from growth.architecture import Architecture
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.norm import FusedLayerNorm, LayerNorm
from pretrain.kernels.activation import bias_gelu

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is GPT-2's own in Megatron's TransformerConfig."""
    return {"activation_func": partial(F.gelu, approximate="tanh")}  # gelu_new


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    """One pipeline chunk, whose samples may be shorter than its positions; where: see build_gpt."""
    return build_gpt(
        arch,
        config,
        FusedLayerNorm if fused else LayerNorm,
        partial(bias_gelu, approximate="tanh"),
        fused=fused,
        max_sequence_length=arch.sizes["positions"],
        share_embeddings_and_output_weights=True,
        position_embedding_type="learned_absolute",
        **where,
    )

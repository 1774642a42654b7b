"""Transformer-XL on Megatron-core's GPTModel: LayerNorm, relu, attention by distance, head tied to the embedding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.identity_op import IdentityOp

from growth.architecture import Architecture
from growth.family import DISTANCES
from pretrain.families.common.causal import CausalLM, build_gpt, forward, logits, outputs
from pretrain.families.common.norm import FusedLayerNorm, LayerNorm
from pretrain.families.transformer_xl.attention import RelativeAttention
from pretrain.kernels.activation import bias_relu

__all__ = ["build_chunk", "config_fields", "forward", "logits", "outputs"]


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is Transformer-XL's own in Megatron's TransformerConfig."""
    return {"activation_func": F.relu}


def build_chunk(arch: Architecture, config: TransformerConfig, *, seq_len: int, fused: bool, **where: Any) -> CausalLM:
    """One pipeline chunk; where: see build_gpt."""
    model = build_gpt(
        arch,
        config,
        FusedLayerNorm if fused else LayerNorm,
        bias_relu,
        fused=fused,
        core_attention=partial(RelativeAttention, arch.sizes[DISTANCES]),
        max_sequence_length=seq_len,
        share_embeddings_and_output_weights=True,
        position_embedding_type="none",
        **where,
    )
    for layer in model.decoder.layers:  # Megatron-core's linear layers have all biases or none
        if not isinstance(layer.self_attention, IdentityOp):
            layer.self_attention.linear_qkv.bias = layer.self_attention.linear_proj.bias = None
    return model

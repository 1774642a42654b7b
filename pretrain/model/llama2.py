"""LLaMA-2 on Megatron-core's GPTModel: RMSNorm, SwiGLU, RoPE, no biases, untied embeddings, MHA or GQA."""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from growth.architecture import Architecture
from pretrain.model.attention import CoreAttention
from pretrain.model.norm import RMSNorm


class CausalLM(GPTModel):
    """GPTModel whose vocabulary may be padded to a multiple of the tensor-parallel size.

    Padding rows come after the real ones; their logits are the lowest number there is, so they take no part in the
    softmax and get no gradient.
    """

    vocab: int

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token, [B, S], from labels [B, S] and local logits [S, B, vocab / TP]."""
        local = logits.shape[-1]
        real = self.vocab - parallel_state.get_tensor_model_parallel_rank() * local
        if real < local:
            with torch.no_grad():
                logits[..., max(real, 0) :] = torch.finfo(logits.dtype).min
        return super().compute_language_model_loss(labels, logits)


def config_fields(arch: Architecture) -> dict[str, object]:
    """The part of Megatron's TransformerConfig that the architecture decides."""
    s = arch.sizes
    return {
        "num_layers": s["layers"],
        "hidden_size": s["hidden"],
        "num_attention_heads": s["heads"],
        "num_query_groups": s["kv_heads"],
        "kv_channels": s["head_dim"],
        "ffn_hidden_size": s["ffn"],
        "layernorm_epsilon": arch.scalars["norm_eps"],
        "softmax_scale": arch.scalars["softmax_scale"],
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "bias_activation_fusion": False,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def _layers(config: TransformerConfig, chunk_layers: int) -> TransformerBlockSubmodules:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = CoreAttention
    spec = ModuleSpec(module=TransformerLayer, submodules=layer.submodules)
    return TransformerBlockSubmodules(layer_specs=[spec] * chunk_layers, layer_norm=RMSNorm)


def build_chunk(
    arch: Architecture,
    config: TransformerConfig,
    *,
    seq_len: int,
    layers: int,
    first: bool,
    last: bool,
    chunk: int | None,
) -> CausalLM:
    """One pipeline chunk with `layers` layers; chunk is its index on this rank, None without interleaving."""
    tp = config.tensor_model_parallel_size
    model = CausalLM(
        config=config,
        transformer_layer_spec=_layers(config, layers),
        vocab_size=ceil(arch.sizes["vocab"] / tp) * tp,
        max_sequence_length=seq_len,
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
        rotary_base=arch.scalars["rope_theta"],
        vp_stage=chunk,
    )
    model.vocab = arch.sizes["vocab"]
    return model

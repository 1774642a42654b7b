"""BERT on Megatron-core's BertModel: LayerNorm before each branch, gelu, learned positions, biases, tied embedding.

Samples are tensors with one row a sample: inputs, types and labels, int64 [n, S]; mask, float [n, S], 1 where a label
counts; valid, float [n, S], 1 where there is text and no padding; next_sentence, int64 [n], 1 where the
second part does not follow the first, -100 where it does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.bert import bert_lm_head
from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from growth.architecture import Architecture
from pretrain.families.common.attention import CoreAttention
from pretrain.families.common.layer import layer_specs
from pretrain.families.common.norm import FusedLayerNorm, LayerNorm
from pretrain.families.common.vocabulary import Vocabulary, padded
from pretrain.kernels.activation import bias_gelu
from pretrain.losses import Outputs

bert_lm_head.LNImpl = LayerNorm  # its own refuses sequence parallelism


class Bert(Vocabulary, BertModel):
    """BertModel with a padded vocabulary, and with attention that hides padding from every query."""

    def _sanity_check_attention_and_get_attn_mask_dimension(self) -> str:
        return "b11s"  # padding is hidden as a key; what a padded query sees is of no account


def config_fields(arch: Architecture) -> dict[str, object]:
    """What is BERT's own in Megatron's TransformerConfig."""
    return {"activation_func": F.gelu}


def build_chunk(
    arch: Architecture,
    config: TransformerConfig,
    *,
    seq_len: int,
    kinds: Sequence[str],
    first: bool,
    last: bool,
    chunk: int | None,
    fused: bool,
) -> Bert:
    """One pipeline chunk with blocks of these kinds; chunk is its index on this rank, None without interleaving.

    Samples may be shorter than its positions. fused: whether what lies between matrix products is kernels.
    """
    norm = FusedLayerNorm if fused else LayerNorm
    attention = bert_layer_local_spec.submodules.self_attention
    submodules = replace(
        bert_layer_local_spec.submodules,
        input_layernorm=norm,
        pre_mlp_layernorm=norm,
        self_attention=ModuleSpec(
            module=attention.module,
            params=attention.params,
            submodules=replace(attention.submodules, core_attention=CoreAttention),
        ),
    )
    specs = layer_specs(submodules, bias_gelu if fused else None, kinds)
    model = Bert(
        config=config,
        num_tokentypes=arch.sizes["types"],
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm),
        vocab_size=padded(arch.sizes["vocab"], config.tensor_model_parallel_size),
        max_sequence_length=arch.sizes["positions"],
        pre_process=first,
        post_process=last,
        share_embeddings_and_output_weights=True,
        vp_stage=chunk,
    )
    model.complete(arch.sizes["vocab"], fused)
    return model


def forward(model: torch.nn.Module, samples: Mapping[str, Tensor]) -> Any:
    """On the last pipeline rank the negative log-likelihood of each label, [B, S], and the next sentence's logits."""
    return model(samples["inputs"], samples["valid"], samples["types"], samples["labels"])


def logits(model: torch.nn.Module, samples: Mapping[str, Tensor]) -> Any:
    """On the last pipeline rank the masked-language head's local logits, [B, S, vocab / TP]."""
    output = model(samples["inputs"], samples["valid"], samples["types"])
    return output[0] if isinstance(output, tuple) else output


def outputs(output: Any) -> Outputs:
    """What the terms of the loss take, from what `forward` gave."""
    loss_BS, next_sentence_B2 = output
    return {"words": loss_BS, "next_sentence": next_sentence_B2}

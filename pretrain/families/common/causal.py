"""What families of causal language models share: Megatron-core's GPTModel, and how it is called.

Samples are tensors with one row a sample: inputs and labels, int64 [n, S], and optionally mask, float [n, S], 1 where a
label counts; and document_starts, int32 [n, K], where documents do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from growth.architecture import Architecture
from pretrain.data.documents import positions
from pretrain.families.common import memory
from pretrain.families.common.attention import CoreAttention, SelfAttention
from pretrain.families.common.documents import Documents
from pretrain.families.common.kinds import KINDS
from pretrain.families.common.layer import Activation, layer_specs
from pretrain.families.common.span_attention import SpanAttention
from pretrain.families.common.vocabulary import Vocabulary, padded
from pretrain.losses import Outputs


class CausalLM(Vocabulary, GPTModel):
    """GPTModel with a padded vocabulary, whose rotary embeddings begin anew at every document, and count the places of
    a memory."""

    def _preprocess(self, *, position_ids: Tensor, packed_seq_params: Documents | None = None, **given: Any) -> Any:
        how = {"position_ids": position_ids, "packed_seq_params": packed_seq_params}
        embedded, angles, *rest = super()._preprocess(**how, **given)
        if angles is not None and (before := memory.places()):
            # Angles between a document's own places are what they are anywhere in [memory; segment].
            angles = self.rotary_pos_emb(before + position_ids.shape[1])
        elif packed_seq_params is not None and angles is not None:
            angles = angles[position_ids.t()].flatten(2, 3)  # [S, B, 1, H], of [S, 1, 1, H]
        return embedded, angles, *rest


def build_gpt(
    arch: Architecture,
    config: TransformerConfig,
    norm: type[torch.nn.Module],
    activation: Activation,
    *,
    fused: bool,
    kinds: Sequence[str],
    first: bool,
    last: bool,
    chunk: int | None,
    head_norm: type[torch.nn.Module] | None = None,
    core_attention: Callable[..., torch.nn.Module] = CoreAttention,
    model: type[CausalLM] = CausalLM,
    of_kind: Callable[[ModuleSpec, str], ModuleSpec] | None = None,
    **how: Any,
) -> CausalLM:
    """One pipeline chunk with blocks of these kinds; chunk is its index on this rank, None without interleaving.

    fused: whether what lies between matrix products is kernels; norms and activation are then to be made of them.
    head_norm: that of queries and keys, if they have one. core_attention: what mixes the values. of_kind: where a
    family has kinds of its own, the spec of a layer of a kind, from that of one with attention and an MLP.
    """
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.input_layernorm = norm
    layer.submodules.pre_mlp_layernorm = norm
    layer.submodules.self_attention.module = SelfAttention
    if arch.span:
        core_attention = partial(SpanAttention, spans=arch.span)
    layer.submodules.self_attention.submodules.core_attention = core_attention
    if head_norm:
        parts = layer.submodules.self_attention.submodules
        parts.q_layernorm = parts.k_layernorm = head_norm
    made = activation if fused else None
    if of_kind is None:
        specs = layer_specs(layer.submodules, made, kinds)
    else:
        (usual,) = layer_specs(layer.submodules, made, KINDS[:1])
        specs = [of_kind(usual, kind) for kind in kinds]
    built = model(
        config=config,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=specs, layer_norm=norm),
        vocab_size=padded(arch.sizes["vocab"], config.tensor_model_parallel_size),
        pre_process=first,
        post_process=last,
        vp_stage=chunk,
        **how,
    )
    built.complete(arch.sizes["vocab"], fused)
    return built


def forward(model: torch.nn.Module, samples: Mapping[str, Tensor]) -> Tensor:
    """On the last pipeline rank the negative log-likelihood of every label, [B, S]."""
    return _call(model, samples, labels=samples["labels"])


def logits(model: torch.nn.Module, samples: Mapping[str, Tensor]) -> Tensor:
    """On the last pipeline rank the local logits, [B, S, vocab / TP]."""
    return _call(model, samples)


def _call(model: torch.nn.Module, samples: Mapping[str, Tensor], **how: Any) -> Tensor:
    inputs_BS = samples["inputs"]
    position_BS = positions(samples).expand_as(inputs_BS)
    return model(inputs_BS, position_BS, None, packed_seq_params=Documents.of(samples), **how)


def outputs(output: Tensor) -> Outputs:
    """What the terms of the loss take, from what `forward` gave."""
    return {"words": output}

"""BERT, as Megatron-LM builds it, on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.evaluate.box_values import Read
from pretrain.data.samples import Samples
from pretrain.families.common.kinds import ATTENTION, MLP
from pretrain.families.common.reference import Weights, attention
from pretrain.losses import Outputs


def logits(read: Read, arch: Architecture, samples: Samples, dtype: torch.dtype) -> Outputs:
    """The logits of the words, [B, S, V], and of the next sentence, [B, 2]."""
    ids_BS = samples["inputs"]
    types_BS = samples["types"] if "types" in samples else torch.zeros_like(ids_BS)
    valid_BS = samples["valid"].bool() if "valid" in samples else None
    weight = Weights(read, arch, dtype)
    embedding_VD = weight("bert.embeddings.word_embeddings.weight")
    x_BSD = embedding_VD[ids_BS]
    x_BSD = x_BSD + weight("bert.embeddings.token_type_embeddings.weight")[types_BS]
    x_BSD = x_BSD + weight("bert.embeddings.position_embeddings.weight")[: ids_BS.shape[1]]
    for kind, number in arch.blocks:
        layer = f"bert.encoder.layer.{number}."
        if kind in ATTENTION:
            h_BSD = weight.layer_norm(x_BSD, layer + "attention.ln")
            q, k, v = (weight.linear(h_BSD, f"{layer}attention.self.{p}") for p in ("query", "key", "value"))
            mixed = attention(arch, q, k, v, causal=False, valid_BS=valid_BS)
            x_BSD = x_BSD + weight.linear(mixed, layer + "attention.output.dense")
        if kind in MLP:
            h_BSD = weight.layer_norm(x_BSD, layer + "ln")
            h = F.gelu(weight.linear(h_BSD, layer + "intermediate.dense"))
            x_BSD = x_BSD + weight.linear(h, layer + "output.dense")
    h_BSD = weight.layer_norm(x_BSD, "bert.encoder.ln")
    pooled_BD = torch.tanh(weight.linear(h_BSD[:, 0], "bert.pooler.dense"))
    h = F.gelu(weight.linear(h_BSD, "cls.predictions.transform.dense"))
    words = weight.layer_norm(h, "cls.predictions.transform.LayerNorm") @ embedding_VD.T
    return {
        "words": words + weight("cls.predictions.bias"),
        "next_sentence": weight.linear(pooled_BD, "cls.seq_relationship"),
    }

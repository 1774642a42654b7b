"""BERT, as Megatron-LM builds it, on logical tensors. Shape suffixes as in pretrain.families.common.reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pretrain.data.samples import Samples
from pretrain.families.common.reference import Reference, Weights, attention, by_kind
from pretrain.losses import Outputs

EMBEDDING = "bert.embeddings.word_embeddings.weight"


def _embed(weight: Weights, samples: Samples) -> torch.Tensor:
    ids_BS = samples["inputs"]
    types_BS = samples["types"] if "types" in samples else torch.zeros_like(ids_BS)
    x_BSD = weight.kept(EMBEDDING)[ids_BS]
    x_BSD = x_BSD + weight("bert.embeddings.token_type_embeddings.weight")[types_BS]
    return x_BSD + weight("bert.embeddings.position_embeddings.weight")[: ids_BS.shape[1]]


def _attention(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"bert.encoder.layer.{number}.attention."
    valid_BS = samples["valid"].bool() if "valid" in samples else None
    h_BSD = weight.layer_norm(x_BSD, layer + "ln")
    q, k, v = (weight.linear(h_BSD, f"{layer}self.{p}") for p in ("query", "key", "value"))
    return weight.linear(attention(weight.arch, q, k, v, causal=False, valid_BS=valid_BS), layer + "output.dense")


def _mlp(weight: Weights, number: int, x_BSD: torch.Tensor, samples: Samples) -> torch.Tensor:
    layer = f"bert.encoder.layer.{number}."
    h = F.gelu(weight.linear(weight.layer_norm(x_BSD, layer + "ln"), layer + "intermediate.dense"))
    return weight.linear(h, layer + "output.dense")


def _head(weight: Weights, x_BSD: torch.Tensor) -> Outputs:
    """The logits of the words, [B, S, V], and of the next sentence, [B, 2]."""
    h_BSD = weight.layer_norm(x_BSD, "bert.encoder.ln")
    pooled_BD = torch.tanh(weight.linear(h_BSD[:, 0], "bert.pooler.dense"))
    h = F.gelu(weight.linear(h_BSD, "cls.predictions.transform.dense"))
    words = weight.layer_norm(h, "cls.predictions.transform.LayerNorm") @ weight.kept(EMBEDDING).T
    return {
        "words": words + weight("cls.predictions.bias"),
        "next_sentence": weight.linear(pooled_BD, "cls.seq_relationship"),
    }


REFERENCE = Reference(_embed, by_kind(_attention, _mlp), _head)

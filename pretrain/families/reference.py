"""Reference models in plain torch, one module a family: what a function-preserving growth preserves.

They work on logical tensors, independent of any training stack, differentiable and in any precision, and read one layer
at a time, each tensor once and whole, as a weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import Architecture
from growth.evaluate.box_values import Read
from pretrain.families.bert import reference as bert
from pretrain.families.gpt2 import reference as gpt2
from pretrain.families.llama2 import reference as llama2

MODELS = {"llama2": llama2.logits, "bert": bert.logits, "gpt2": gpt2.logits}


def logits(read: Read, arch: Architecture, ids_BS: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits [B, S, V] of token ids [B, S] under a model of any family (BERT: of the masked-language head)."""
    return MODELS[arch.family](read, arch, ids_BS, dtype)


def loss(
    read: Read,
    arch: Architecture,
    ids_BS: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    vocab: int | None = None,
) -> torch.Tensor:
    """The mean loss in nats, over the first `vocab` ids if given: of the next token; for BERT, which has two heads, a
    probe of both: of the token itself, and of the parity of the first token as the sentence order."""
    if arch.family != "bert":
        out = logits(read, arch, ids_BS, dtype)[..., :vocab]
        return F.cross_entropy(out[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())
    words, order = bert.heads(read, arch, ids_BS, torch.zeros_like(ids_BS), dtype)
    return F.cross_entropy(words[..., :vocab].flatten(0, 1), ids_BS.flatten()) + F.cross_entropy(
        order, ids_BS[:, 0] % 2
    )

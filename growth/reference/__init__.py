"""Reference models in plain torch, one module a family: what a function-preserving growth preserves.

They work on logical tensors, independent of any training stack, differentiable and in any precision, and read one layer
at a time, each tensor once and whole, as a weight.
"""

from __future__ import annotations

import torch

from growth.architecture import Architecture
from growth.evaluate import Read
from growth.reference import bert, gpt2, llama2

MODELS = {"llama2": llama2.logits, "bert": bert.logits, "gpt2": gpt2.logits}


def logits(read: Read, arch: Architecture, ids_BS: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits [B, S, V] of token ids [B, S] under a model of any family (BERT: of the masked-language head)."""
    return MODELS[arch.family](read, arch, ids_BS, dtype)

"""Reference models in plain torch, one module a family: what a function-preserving growth preserves."""

from __future__ import annotations

import torch

from growth.architecture import Architecture
from growth.evaluate import Read
from growth.reference import llama2

MODELS = {"llama2": llama2.logits}


def logits(read: Read, arch: Architecture, ids_BS: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits [B, S, vocab] of a model of any family; see the module of the family."""
    return MODELS[arch.family](read, arch, ids_BS, dtype)

"""The reference models, in plain torch: what a function-preserving growth preserves.

They work on logical tensors, independent of any training stack, differentiable and in any precision, and read one layer
at a time, each tensor once and whole, as a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growth.architecture import Architecture
from growth.evaluate.box_values import Read
from pretrain import families
from pretrain.data.samples import Samples
from pretrain.losses import mean, of_logits


def logits(read: Read, arch: Architecture, text: Tensor | Samples, dtype: torch.dtype = torch.float32) -> Tensor:
    """The logits [B, S, V] of the words of token ids [B, S], or of samples, under a model of any family."""
    samples = {"inputs": text} if isinstance(text, Tensor) else text
    return families.of(arch.family).reference(read, arch, samples, dtype)["words"]


def objective(
    read: Read, arch: Architecture, samples: Samples, dtype: torch.dtype = torch.float32, vocab: int | None = None
) -> Tensor:
    """What training minimises, in nats: the means of the terms of the loss, of the words over the first `vocab` ids if
    given."""
    family = families.of(arch.family)
    return mean(family.losses, of_logits(family.reference(read, arch, samples, dtype), samples, vocab), samples)


def loss(
    read: Read, arch: Architecture, ids_BS: Tensor, dtype: torch.dtype = torch.float32, vocab: int | None = None
) -> Tensor:
    """The objective on token ids [B, S], as the family makes samples of them."""
    return objective(read, arch, families.of(arch.family).samples_of(arch, ids_BS), dtype, vocab)


def words(logits_BSV: Tensor, samples: Samples, arch: Architecture) -> Tensor:
    """The mean loss of the words in nats, from their logits."""
    term = families.of(arch.family).losses[:1]
    return mean(term, of_logits({"words": logits_BSV}, samples), samples)

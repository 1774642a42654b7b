"""Text that is shorter than a multiple of the longest unit is padded at its left.

Padding is a document of its own in front of the text (see pretrain.data.documents): the samples say in
`document_starts`, [n, 2], where the text begins, so that no token attends to padding, and positions count from the
text's first token. At deeper levels a unit is padding when all its tokens are. The embedding of padding is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growth.architecture import Architecture
from pretrain.data.documents import STARTS
from pretrain.data.samples import Samples

PADDING = 0
"""The id of padding, which nothing reads."""


def starts(padding: Tensor) -> Tensor:
    """The `document_starts` of samples with so many padded places each, [n]."""
    return torch.stack((torch.zeros_like(padding), padding), 1).to(torch.int32)


def is_text(samples: Samples) -> Tensor | None:
    """Which inputs are no padding, bool [n, S]; None: all."""
    if STARTS not in samples:
        return None
    inputs = samples["inputs"]
    return torch.arange(inputs.shape[1], device=inputs.device) >= samples[STARTS][:, 1:2]


def prompt(ids: Sequence[int], arch: Architecture) -> Samples:
    """The sample of a text of any length, [1, S]: its logits at the last places, as many as the longest unit has
    tokens, are of the tokens that come next."""
    missing = -len(ids) % arch.unit
    return {"inputs": torch.tensor([[PADDING] * missing + list(ids)]), STARTS: starts(torch.tensor([missing]))}

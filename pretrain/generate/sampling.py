"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """What the next token is drawn from, in the order in which transformers applies it."""

    temperature: float = 0.8
    """What logits are divided by; 0: the likeliest token, always."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Of these the likeliest ones whose probabilities first come to this (Holtzman et al. 2020); 1: all."""


def choose(logits_V: Tensor, how: Sampling, draw: torch.Generator) -> int:
    """The next token, from its logits."""
    if not how.temperature:
        return int(logits_V.argmax())
    ordered, ids = (logits_V.double() / how.temperature).sort(descending=True, stable=True)
    if how.top_k:
        ordered = ordered[: how.top_k]
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = probabilities[before < how.top_p]  # the first of them always, of which nothing comes before
    return int(ids[torch.multinomial(kept, 1, generator=draw)])

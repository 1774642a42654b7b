"""The head of a model that shares the embedding, among the parameters of a pipeline chunk."""

from __future__ import annotations

from dataclasses import replace

from pretrain.layout.cuts import Parameter, Place


def tied_head(place: Place, name: str, tensor: str, vocab: int, hidden: int) -> list[Parameter]:
    """The head's copy of the embedding, which the last of several pipeline chunks has; the first chunk's is written."""
    return [] if place.first else [replace(place.rows(name, tensor, (vocab, hidden)), owner=False)]

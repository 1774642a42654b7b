"""Where the spans of heads lie: in the attention of their layer, cut by heads as its queries are."""

from __future__ import annotations

from growth.architecture import Architecture
from growth.span import beside
from pretrain.layout.cuts import Parameter, Place


def spans(arch: Architecture, place: Place, to: str, query: str) -> list[Parameter]:
    """The spans of a layer, whose parameters begin with `to` and whose matrix of queries this is; none where heads have
    no spans."""
    if not arch.span:
        return []
    return [place.rows(f"{to}self_attention.core_attention.span", beside(query), (arch.sizes["heads"],))]

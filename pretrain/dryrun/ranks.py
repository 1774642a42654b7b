"""Which ranks of a layout stand for all of them."""

from __future__ import annotations

from pretrain.layout import Layout


def kinds(layout: Layout) -> list[int]:
    """One rank of each kind, ascending.

    Every pipeline rank, as the first of its tensor-parallel and data-parallel ranks: no two have the same schedule,
    and a message is compared where both of its ends are run. The first and the last of them also as the last
    tensor-parallel rank, which may hold padding of the vocabulary, and the last data-parallel one, whose partition may
    be padded.
    """
    ends = {0, layout.pp - 1}
    first = {rank_of(layout, pp, 0, 0) for pp in range(layout.pp)}
    return sorted(first | {rank_of(layout, pp, layout.dp - 1, layout.tp - 1) for pp in ends})


def rank_of(layout: Layout, pp_rank: int, dp_rank: int, tp_rank: int) -> int:
    """The rank with these coordinates: the inverse of Layout.coordinates."""
    return (pp_rank * layout.dp + dp_rank) * layout.tp + tp_rank


def named(layout: Layout, rank: int) -> str:
    """A rank in words: its number, and its place along every dimension that there is."""
    places = zip(("pp", "dp", "tp"), layout.coordinates(rank), (layout.pp, layout.dp, layout.tp), strict=True)
    return " ".join([f"rank {rank}", *(f"{name} {place}/{size}" for name, place, size in places if size > 1)])

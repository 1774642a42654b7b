"""Whether ranks would meet: every group's collectives in one order on all of its ranks, every send with its receive.

Ranks that were not run are stood for by one of their kind, so groups are compared by their place in the layout: those
of equal extent and pipeline rank are one group here, whatever their numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from pretrain.dryrun.ranks import named, rank_of
from pretrain.layout import Layout

Call = tuple[str, Sequence[int], str, str, str]
"""(operation, ranks of its group or the two of a message, what is moved, line, phase); see `collectives`."""
Group = tuple[str, tuple[int, ...]]
"""(the dimensions along which its ranks differ, their pipeline ranks)"""
MESSAGES = ("send", "receive")


def problems(calls: Mapping[int, Sequence[Call]], layout: Layout) -> list[str]:
    """What does not meet, in words; calls: of each rank that was run, by its number."""
    return [*_orders(calls, layout), *_messages(calls, layout)]


def _orders(calls: Mapping[int, Sequence[Call]], layout: Layout) -> Iterator[str]:
    """Groups whose ranks do not make the same collectives in the same order; the first difference of each."""
    groups: dict[Group, dict[int, list[Call]]] = defaultdict(lambda: {rank: [] for rank in calls})
    for rank, made in calls.items():
        for call in made:
            if call[0] not in MESSAGES and len(call[1]) > 1:
                groups[_group(call[1], layout)][rank].append(call)
    for group, by_rank in groups.items():
        members = [rank for rank in by_rank if layout.coordinates(rank)[0] in group[1]]
        first = members[0]
        for other in members[1:]:
            pairs = zip_longest(by_rank[first], by_rank[other])
            differ = next(((n, a, b) for n, (a, b) in enumerate(pairs) if _same(a) != _same(b)), None)
            if differ:
                n, a, b = differ
                yield (
                    f"collective {n + 1} of the group along {group[0]}: {named(layout, first)} makes {_said(a)}, and "
                    f"{named(layout, other)} makes {_said(b)}"
                )


def _group(ranks: Sequence[int], layout: Layout) -> Group:
    places = [layout.coordinates(rank) for rank in ranks]
    names = [name for d, name in enumerate(("pp", "dp", "tp")) if len({place[d] for place in places}) > 1]
    return " x ".join(names), tuple(sorted({place[0] for place in places}))


def _messages(calls: Mapping[int, Sequence[Call]], layout: Layout) -> Iterator[str]:
    """Pairs of pipeline ranks one of which sends what the other does not receive, or receives what is not sent."""
    for rank in calls:
        own = layout.coordinates(rank)
        for peer_pp in range(layout.pp):
            peer = rank_of(layout, peer_pp, *own[1:])
            peer = peer if peer in calls else rank_of(layout, peer_pp, 0, 0)
            if peer == rank or peer not in calls:
                continue
            sent = [c for c in calls[rank] if c[0] == "send" and layout.coordinates(c[1][1])[0] == peer_pp]
            got = [c for c in calls[peer] if c[0] == "receive" and layout.coordinates(c[1][0])[0] == own[0]]
            pairs = zip_longest(sent, got)
            differ = next(((n, a, b) for n, (a, b) in enumerate(pairs) if (a and a[2]) != (b and b[2])), None)
            if differ:
                n, a, b = differ
                yield (
                    f"message {n + 1} from {named(layout, rank)} to {named(layout, peer)}: the first sends "
                    f"{_said(a)}, and the second receives {_said(b)}"
                )


def _same(call: Call | None) -> tuple[str, str] | None:
    return call and (call[0], call[2])


def _said(call: Call | None) -> str:
    if call is None:
        return "nothing"
    operation, _, what, line, phase = call
    return f"{'' if operation in MESSAGES else operation + ' '}{what} at {line} [{phase}]"

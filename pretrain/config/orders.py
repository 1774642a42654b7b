"""Orders of sublayers: s is attention, f an MLP, each with its norm and its residual branch. An ordinary model is
sfsf...; these put more attention below and more MLPs above."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import growth.architecture
from growth.architecture import Architecture

Order = str | Mapping[Literal["sandwich", "par"], int]
"""The sublayers, one letter each; or the name of a rule, with its number."""

KINDS = {"s": "attention", "f": "mlp"}
"""The kind of layer that a letter stands for, as families name it."""

MOST = 1024
"""Sublayers; beyond, to split a pipeline by work would take long."""


def sandwich(pairs: int, k: int) -> str:
    """s^k (sf)^(n-k) f^k for n pairs (Press et al., 2019, "Improving transformer models by reordering their
    sublayers", section 5): an ordinary model whose lowest MLPs and highest attentions have changed places.

    >>> sandwich(4, 2)
    'sssfsfff'
    """
    return "s" * k + "sf" * (pairs - k) + "f" * k


def par(sublayers: int, p: int) -> str:
    """One in p of the sublayers is attention, spread evenly over the lower two thirds; the others are MLPs (Mandava et
    al., 2020, "Pay attention when required").

    There are n = round(sublayers / p) attentions; number i is sublayer floor(i * floor(2 * sublayers / 3) / n).

    >>> par(12, 4)
    'sfsffsffffff'
    """
    attentions = round(sublayers / p)
    at = {i * (2 * sublayers // 3) // attentions for i in range(attentions)}
    return "".join("s" if i in at else "f" for i in range(sublayers))


def letters(order: Order, pairs: int) -> str:
    """The sublayers of `model.order`, one letter each; a name of an order is for `pairs` of attention and an MLP."""
    if isinstance(order, str):
        return order
    return sandwich(pairs, order["sandwich"]) if "sandwich" in order else par(2 * pairs, order["par"])


def misfits(order: Order, pairs: int) -> Iterator[str]:
    """Yields what is wrong with an order for this `model.layers` (0: not given): key, values, what would fit."""
    if (sublayers := len(letters(order, pairs))) > MOST:
        yield f"model.order: {sublayers} sublayers; give at most {MOST}"
    if isinstance(order, str):
        if pairs:
            yield f"model.layers: {pairs}, but model.order spells all {len(order)} sublayers; remove it"
        return
    ((name, number),) = order.items()
    least, most = (0, pairs) if name == "sandwich" else (2, 2 * pairs)
    if pairs and not least <= number <= most:
        yield (
            f"model.order: {name} {number} does not fit model.layers {pairs}, {2 * pairs} sublayers; choose {least} to "
            f"{most}"
        )


def in_words(arch: Architecture) -> str:
    """What is unusual about the blocks of a model: the letters of an order, else as the algebra says it; empty where
    they are the usual ones."""
    of = {kind: letter for letter, kind in KINDS.items()}
    if arch.shared or not set(arch.kinds) <= set(of):
        return growth.architecture.in_words(arch)
    return "".join(of[kind] for kind in arch.kinds)

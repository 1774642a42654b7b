"""Random orders of sublayers at equal parameters (Press et al., 2019, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.data.draws import below, uniform


def draw(parameters: Mapping[str, int], budget: int, key: int) -> str:
    """An order that is a function of the key: sublayer after sublayer, each letter that still fits is as likely as the
    others, until none fits the budget for all sublayers."""
    order, left = "", budget
    while fits := [letter for letter, size in parameters.items() if size <= left]:
        letter = fits[int(below(len(fits), uniform(key, "order", len(order))))]
        order, left = order + letter, left - parameters[letter]
    return order

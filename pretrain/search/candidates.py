"""Orders of sublayers that are compared: the models that have them, and as many parameters as another one."""

from __future__ import annotations

from collections.abc import Callable

from growth.architecture import Architecture
from pretrain.config.orders import KINDS


def of_order(arch: Architecture, order: str) -> Architecture:
    """The architecture with sublayers in this order, each of its own weights."""
    kinds = tuple(KINDS[letter] for letter in order)
    return arch.replace({"layers": len(order)}, kinds=kinds, calls=tuple(range(len(order))))


def sublayer_parameters(arch: Architecture) -> dict[str, int]:
    """The parameters of one sublayer, by its letter."""
    of_one = {letter: of_order(arch, letter).tensors().values() for letter in KINDS}
    return {letter: sum(t.numel for t in tensors if t.layer == 0) for letter, tensors in of_one.items()}


def nearest(parameters: dict[str, int], budget: int, order_of: Callable[[int], str]) -> str:
    """That of the orders of n sublayers, n = 1, 2, ..., whose parameters are nearest to a budget for all sublayers; the
    shorter of two."""
    most = budget // min(parameters.values()) + 1
    return min(map(order_of, range(1, most + 1)), key=lambda order: abs(total(parameters, order) - budget))


def stretched(order: str, n: int) -> str:
    """The order with n sublayers, each with the letter that is at the same share of the way: letters are repeated, or
    left out, as evenly as can be."""
    return "".join(order[i * len(order) // n] for i in range(n))


def total(parameters: dict[str, int], order: str) -> int:
    """The parameters of all sublayers of an order."""
    return sum(parameters[letter] for letter in order)

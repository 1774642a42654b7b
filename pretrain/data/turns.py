"""Whose turn it is: the order in which the sources of a mixture give samples, which keeps every share exactly.

The sources take turns as equal tasks that share one processor do (Tijdeman 1980, "The chairman assignment problem";
Baruah et al. 1996, "Proportionate progress"). The nth turn of a source with the share w may come from place (n - 1) / w
on, rounded down, and must come before n / w, rounded up; of those that may come, the one that must come first is next.
So after any number N of turns each source has had N w, rounded up or down. To take the source that is farthest behind
instead, as Megatron-core's BlendedDataset does, keeps no such bound where there are more than two.

All that is remembered is how many turns each source has had. Numbers are whole, so nothing is lost in a long run.
"""

from collections.abc import Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from pretrain.data.permute import permuted


def whole(weights: Sequence[float]) -> list[int]:
    """Weights as the smallest whole numbers in the same proportion; each is taken for the decimal that it prints as."""
    exact = [Fraction(repr(weight)) for weight in weights]
    common = lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * common) for weight in exact]
    divisor = gcd(*numbers) or 1
    return [number // divisor for number in numbers]


def turns(weights: Sequence[int], had: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
    """The sources of the next n samples (int64 [n]), after each has had so many turns.

    weights: whole and not all zero; those of zero have no turn. seed: decides between turns that must come by the same
    place.
    """
    total, place = sum(weights), sum(had)
    first = permuted(np.arange(len(weights)), len(weights), seed, "turns").tolist()
    had = list(had)
    due: list[tuple[int, int, int]] = []  # by when its next turn must come, which of several is first, source
    # From when on it may, source.
    early = [(had[source] * total // weight, source) for source, weight in enumerate(weights) if weight]
    heapify(early)
    # After `total` turns every source is as far ahead or behind as it was, so the order repeats.
    order = np.empty(min(n, total), dtype=np.int64)
    for number in range(len(order)):
        while early and early[0][0] <= place + number:
            _, source = heappop(early)
            heappush(due, (-(-(had[source] + 1) * total // weights[source]), first[source], source))
        source = heappop(due)[2]
        order[number] = source
        had[source] += 1
        heappush(early, (had[source] * total // weights[source], source))
    return np.resize(order, n)

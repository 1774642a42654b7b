"""Whose turn it is, against the plainest statement of the rule."""

from fractions import Fraction
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.permute import permuted
from pretrain.data.turns import turns, whole

WEIGHTS = st.lists(
    st.one_of(st.integers(0, 9), st.floats(0, 1e3), st.sampled_from([1e-6, 1 / 3, 0.1, 3e12])), min_size=1, max_size=9
).filter(any)


def slow(weights: list[int], n: int, seed: int) -> list[int]:
    """Every place on its own: of the sources that are not ahead of their share, the one whose turn is due first."""
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    had, order = [0] * len(weights), []
    first = permuted(range(len(weights)), len(weights), seed, "turns").tolist()
    for place in range(1, n + 1):
        may = [source for source, share in enumerate(shares) if had[source] < share * place]
        order.append(min(may, key=lambda source: (ceil((had[source] + 1) / shares[source]), first[source])))
        had[order[-1]] += 1
    return order


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS, parts=st.lists(st.integers(0, 80), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_order_and_shares(weights: list[float], parts: list[int], seed: int) -> None:
    """However calls split it, it is the order of the reference; at every place each share is kept to within one."""
    numbers = whole([float(weight) for weight in weights])
    had, order = [0] * len(numbers), []
    for n in parts:
        for source in turns(numbers, had, n, seed).tolist():
            order.append(source)
            had[source] += 1
            assert all(abs(k * sum(numbers) - w * len(order)) < sum(numbers) for k, w in zip(had, numbers, strict=True))
    assert order == slow(numbers, sum(parts), seed)


def test_whole_numbers() -> None:
    """A weight is the decimal that was written."""
    assert whole([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole([0.25, 0.0, 0.125]) == [2, 0, 1]
    assert whole([3e12, 1.0]) == [3 * 10**12, 1]


def test_ties_are_of_the_seed() -> None:
    """Equal sources take turns in an order that the seed decides."""
    orders = {tuple(turns([1, 1, 1], [0, 0, 0], 3, seed).tolist()) for seed in range(40)}
    assert len(orders) == 6

"""Orders at equal parameters: drawn, stretched, nearest."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growth import Architecture
from pretrain import families
from pretrain.search.candidates import nearest, of_order, stretched, sublayer_parameters, total
from pretrain.search.random_search import draw

SIZES = {"vocab": 20, "positions": 8, "hidden": 8, "layers": 3, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 32}
NUMBERS = st.integers(1, 1000)
ORDER = st.text("sf", min_size=1, max_size=20)


def of(family: str) -> Architecture:
    table = families.of(family).table
    return Architecture(family, {axis: table.fixed.get(axis) or SIZES[axis] for axis in ("layers", *table.axes)})


@pytest.mark.parametrize("family", ["llama2", "gpt2", "bert"])
def test_parameters_of_an_order_are_those_of_its_model(family: str) -> None:
    arch = of(family)
    sizes, usual = sublayer_parameters(arch), "sfsfsf"
    assert of_order(arch, usual).parameters() == arch.parameters()
    more = of_order(arch, "fsssff").parameters() - of_order(arch, "sf").parameters()
    assert more == total(sizes, "ssff")


@given(NUMBERS, NUMBERS, st.integers(0, 5_000), st.integers(0, 2**64))
def test_every_draw_spends_the_budget_and_no_more(s: int, f: int, budget: int, key: int) -> None:
    sizes = {"s": s, "f": f}
    order = draw(sizes, budget, key)
    assert 0 <= budget - total(sizes, order) < min(s, f)
    assert draw(sizes, budget, key) == order


def test_draws_differ_and_have_both_letters_everywhere() -> None:
    drawn = [draw({"s": 1, "f": 2}, 18, key) for key in range(200)]
    assert len(set(drawn)) > 150
    for place in range(9):
        assert {order[place] for order in drawn} == {"s", "f"}


@given(ORDER, st.integers(1, 60))
def test_stretched_is_as_even_as_can_be(order: str, n: int) -> None:
    longer = stretched(order, n)
    assert len(longer) == n
    assert stretched(order, len(order)) == order
    if n % len(order) == 0:
        assert longer == "".join(letter * (n // len(order)) for letter in order)


@settings(max_examples=30)
@given(st.integers(10, 100), st.integers(10, 100), st.integers(1, 1000), ORDER)
def test_no_number_of_sublayers_is_nearer(s: int, f: int, budget: int, order: str) -> None:
    sizes = {"s": s, "f": f}
    best = abs(total(sizes, nearest(sizes, budget, lambda n: stretched(order, n))) - budget)
    length = 1
    while total(sizes, stretched(order, length)) <= 2 * budget + 100:
        assert best <= abs(total(sizes, stretched(order, length)) - budget)
        length += 1

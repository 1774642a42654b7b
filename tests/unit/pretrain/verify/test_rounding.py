"""What may differ between a grown checkpoint and its plan: the last bit, where factors were learned; else nothing."""

import pytest
import torch

from pretrain.verify.compare import ROUNDING, _Sums

ULP = 2.0**-23  # of the floats from 1 to 2


def different(found: float, expected: float = 1.0, rounding: float = ROUNDING, largest: float = 1.0) -> int:
    sums = _Sums(rounding)
    sums.add(torch.tensor([largest, expected]), torch.tensor([largest, found]))
    return sums.different


@pytest.mark.parametrize("sign", [1, -1])
def test_two_units_in_the_last_place(sign: int) -> None:
    """A bound of 2 ** -22 of an element is one unit of the smallest and two of the largest of a binade."""
    assert ROUNDING == 2.0**-22
    assert different(1.0 + 2 * ULP) == 0
    assert different(1.0 + 3 * ULP) == 1
    assert different(sign * (2.0 - ULP), sign * 2.0) == 0
    assert different(sign * (2.0 + 2 * ULP), sign * 2.0) == 0
    assert different(sign * (2.0 + 6 * ULP), sign * 2.0) == 1


def test_beside_the_largest_element() -> None:
    """Of an element that is a sum near zero, some 1e-12 of the largest one that has been seen."""
    assert different(2.0**-40, 0.0) == 0
    assert different(2.0**-39, 0.0) == 1
    assert different(2.0**-39, 0.0, largest=2.0) == 0
    assert different(2.0**-30, 0.0, largest=0.0) == 1


@pytest.mark.parametrize("found", [1.0 + ULP, 1.0 - ULP / 2])
def test_without_learned_factors_every_bit_counts(found: float) -> None:
    assert different(found, rounding=0.0) == 1
    assert different(1.0, rounding=0.0) == 0


def test_what_is_no_number_differs() -> None:
    assert different(float("nan")) == 1
    assert different(float("inf")) == 1

"""A certificate holds finite numbers, or there is none."""

from math import inf, nan

import pytest
import torch

from growth import GrowthError, identity
from growth.certificate import Certificate, relative_error
from tests.unit.growth.models import SMALL

NUMBERS = {"error": 0.5, "loss_before": 1.0, "loss_after": 1.0}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    """Also of a plan that claims nothing: no checkpoint could hold it, and no such model trains."""
    plan = identity(SMALL)
    plain = Certificate(("layers: stack",), False, **NUMBERS, tolerance=1e-5)
    plain.require()
    for certificate in (
        Certificate.of(plan, **{**NUMBERS, name: value}),
        Certificate(("layers: stack",), False, **{**NUMBERS, name: value}, tolerance=1e-5),
    ):
        with pytest.raises(GrowthError, match="a model whose output is not finite cannot be grown"):
            certificate.require()


@pytest.mark.parametrize(
    ("before", "after", "ratio"), [(1.0, 2.0, 2.0), (1e-300, 1e300, None), (0.0, 1.0, None), (1.0, None, None)]
)
def test_a_ratio_is_finite_or_unknown(before: float, after: float | None, ratio: float | None) -> None:
    found = Certificate((), True, 0.0, 1e-5, 1.0, 1.0, grad_norm_before=before, grad_norm_after=after)
    assert found.grad_norm_ratio == ratio


def test_an_old_model_that_says_nothing() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert (relative_error(zero, zero), relative_error(one, zero), relative_error(one, one)) == (0.0, 1.0, 0.0)

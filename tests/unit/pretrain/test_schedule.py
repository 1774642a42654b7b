"""The learning rate over a stage."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.schedule import Schedule

SHAPES = st.sampled_from(["cosine", "linear", "constant"])
COSINE = Schedule(lr=1e-3, tokens=1100, warmup_tokens=100, min_lr=1e-4)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (50, 5e-4), (100, 1e-3), (350, 8.681980515339464e-4), (600, 5.5e-4), (1100, 1e-4), (2000, 1e-4)],
)
def test_warm_up_and_cosine(tokens: int, expected: float) -> None:
    assert COSINE.at(tokens) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("tokens", "expected"), [(50, 5e-4), (350, 7.75e-4), (600, 5.5e-4), (1100, 1e-4)])
def test_linear(tokens: int, expected: float) -> None:
    schedule = Schedule(lr=1e-3, tokens=1100, warmup_tokens=100, min_lr=1e-4, shape="linear")
    assert schedule.at(tokens) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1e-5), (100, 1e-3), (700, 1e-3), (5000, 1e-3)])
def test_constant(tokens: int, expected: float) -> None:
    schedule = Schedule(lr=1e-3, tokens=1100, warmup_tokens=100, shape="constant")
    assert schedule.at(tokens) == pytest.approx(expected, rel=1e-12)


def test_warm_up_as_long_as_the_stage() -> None:
    schedule = Schedule(lr=1e-3, tokens=100, warmup_tokens=100)
    assert (schedule.at(99), schedule.at(100)) == (pytest.approx(9.9e-4), 1e-3)


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.floats(1e-6, 1.0), st.floats(0, 1), SHAPES, st.data())
def test_it_stays_between_its_ends_and_only_falls_after_warm_up(
    warmup: int, rest: int, lr: float, share: float, shape: Any, data: st.DataObject
) -> None:
    schedule = Schedule(lr=lr, tokens=warmup + rest, warmup_tokens=warmup, min_lr=share * lr, shape=shape)
    first = data.draw(st.integers(0, warmup + rest))
    second = data.draw(st.integers(first, warmup + rest))
    slack = 1 + 1e-12
    assert 0 <= schedule.at(first) <= lr * slack
    if first >= warmup:
        assert share * lr <= schedule.at(second) * slack
        assert schedule.at(second) <= schedule.at(first) * slack

"""What the guard calls trouble, and when a stage goes back."""

from dataclasses import asdict
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.manifest import plain
from pretrain.config import Guard
from pretrain.errors import UserError
from pretrain.guard.health import Health, roll_back

RULES = Guard(loss_spike=2.0, grad_spike=5.0, window=3, patience=2, rollbacks=1)


def health_after(steps: list[tuple[float, float]], rules: Guard) -> Health:
    health = Health()
    for loss, norm in steps:
        health = health.after(loss, norm, health.trouble(loss, norm, rules), rules)
    return health


@pytest.mark.parametrize(("loss", "norm"), [(nan, 1.0), (inf, 1.0), (1.0, nan), (1.0, inf), (-inf, 1.0)])
@pytest.mark.parametrize("rules", [Guard(), RULES])
def test_what_is_not_finite_is_trouble_at_once(loss: float, norm: float, rules: Guard) -> None:
    assert Health().trouble(loss, norm, rules)


def test_spikes_are_off_unless_asked_for() -> None:
    health = health_after([(3.0, 1.0)] * 100, Guard())
    assert health.trouble(1e30, 1e30, Guard()) == ""
    assert len(health.losses) == Guard().window


def test_a_spike_is_one_beside_the_median_of_a_whole_window() -> None:
    steps = [(3.0, 1.0), (9.0, 40.0)]
    health = health_after(steps, RULES)
    assert health.trouble(1e3, 1e3, RULES) == "", "two steps are no window of three"
    health = health_after([*steps, (4.0, 1.0)], RULES)
    assert health.trouble(8.0, 5.0, RULES) == "", "twice and five times the medians 4 and 1, and no more"
    assert "the loss is 8.1" in health.trouble(8.1, 1.0, RULES)
    assert "2.02 times the median of 3 steps" in health.trouble(8.1, 1.0, RULES)
    assert "the gradient norm is 5.1" in health.trouble(4.0, 5.1, RULES)


@given(st.lists(st.floats(0.1, 1e6), max_size=20))
def test_skipped_steps_do_not_move_the_median(losses: list[float]) -> None:
    health = health_after([(1.0, 1.0)] * 3, RULES)
    for loss in losses:
        trouble = health.trouble(loss, 1.0, RULES)
        after = health.after(loss, 1.0, trouble, RULES)
        assert (after.losses == health.losses and after.skipped == health.skipped + 1) if trouble else not after.skipped
        health = after
    assert Health.from_json(plain(asdict(health))) == health


def test_it_goes_back_after_a_row_and_gives_up_in_the_end() -> None:
    health = health_after([(1.0, 1.0), (nan, 1.0), (1.0, 1.0), (nan, 1.0)], RULES).saved(4)
    assert health.good == 0, "no step to go back to is in the middle of a row"
    assert roll_back(RULES, 4, {}, health, "the loss is nan") is None
    health = health.after(nan, 1.0, "the loss is nan", RULES)
    back = roll_back(RULES, 5, {"at": 5}, health, "the loss is nan")
    assert back is not None
    assert (back.since, back.good, back.cursor) == (5, 0, {"at": 5})
    then = back.health_at(Health(losses=(2.0,)))
    assert then == Health(losses=(2.0,), rollbacks=1)
    then = then.after(nan, 1.0, "the loss is nan", RULES).after(nan, 1.0, "the loss is nan", RULES)
    with pytest.raises(UserError, match=r"2 steps in a row up to step 9 .*the loss is nan.* after 1 rollbacks"):
        roll_back(RULES, 9, {}, then, "the loss is nan")


def test_a_growth_event_changes_what_is_usual() -> None:
    health = health_after([(1.0, 1.0)] * 3, RULES).saved(3)
    assert health.trouble(5.0, 1.0, RULES)
    assert health.grown().trouble(5.0, 1.0, RULES) == ""
    assert health.grown().good == 3


@given(st.lists(st.sampled_from([0.0, 1e-30, 3.0]), min_size=3, max_size=3), st.floats(0, 1e30))
def test_nothing_is_a_multiple_of_a_median_of_zero(losses: list[float], loss: float) -> None:
    health = health_after([(each, 0.0) for each in losses], Guard(window=3))
    trouble = health.trouble(loss, loss, RULES)
    assert not trouble or sorted(losses)[1] > 0
    assert "gradient norm" not in trouble

"""Draws with an address."""

import numpy as np

from pretrain.data.draws import below, keyed, uniform

VALUE = 5636543165952934841


def test_independent_of_shape() -> None:
    """A draw depends on its key alone, not on what it is made with."""
    table = uniform(3, "x", np.arange(5)[:, None], np.arange(7))
    assert table.shape == (5, 7)
    assert table[2, 4] == uniform(3, "x", 2, 4)
    assert len({*table.ravel(), *uniform(3, "y", np.arange(35)), *uniform(4, "x", np.arange(35))}) == 105


def test_uniform() -> None:
    """Means and correlations of neighbouring keys within 4 sigma of those of independent uniform draws."""
    n = 200_000
    x = uniform(0, "test", np.arange(n))
    assert abs(x.mean() - 0.5) < 4 / np.sqrt(12 * n)
    for y in (x[1:], uniform(1, "test", np.arange(n - 1)), uniform(0, "other", np.arange(n - 1))):
        assert abs(np.corrcoef(x[:-1], y)[0, 1]) < 4 / np.sqrt(n)
    assert np.bincount(below(3, x), minlength=3).min() > n / 3 - 4 * np.sqrt(n * 2 / 9)


def test_never_changes() -> None:
    """A resumed run of a later version must draw the same."""
    assert keyed(7, "word", 3).item() == VALUE


def test_a_seed_is_any_whole_number() -> None:
    seeds = [-1, -(2**70), 2**64 - 5, 2**70 + 3, 5]
    assert len({int(keyed(seed, "x")) for seed in seeds}) == len(seeds)

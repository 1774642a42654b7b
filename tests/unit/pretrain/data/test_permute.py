"""The permutation that is never stored."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.permute import permuted

NEVER = [9, 3, 1, 7, 2, 8, 6, 0, 5, 4]
NEVER_LARGE = [129720278750, 238325209951, 17419407940]


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_permutation(size: int, seed: int) -> None:
    """Every index once, whatever part is asked for."""
    whole = permuted(np.arange(size), size, seed)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert np.array_equal(permuted(np.arange(size)[size // 3 :], size, seed), whole[size // 3 :])


def test_keys_differ() -> None:
    """Another seed or epoch is another order."""
    orders = {tuple(permuted(np.arange(100), 100, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_uniform() -> None:
    """Over 4,000 keys each place holds each index equally often: chi-squared of 36 degrees within 3 sigma."""
    where = np.array([permuted(np.arange(7), 7, key) for key in range(4_000)])
    counts = np.stack([np.bincount(where[:, i], minlength=7) for i in range(7)])
    expected = 4_000 / 7
    assert ((counts - expected) ** 2 / expected).sum() * 6 / 7 < 36 + 3 * np.sqrt(2 * 36)


def test_never_changes() -> None:
    """Held-out documents stay held out in every later version: these values are the format."""
    assert permuted(np.arange(10), 10, 0, "split").tolist() == NEVER
    assert permuted(np.array([0, 1, 10**12 - 1]), 10**12, 1, "epoch", 2).tolist() == NEVER_LARGE

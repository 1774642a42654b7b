"""Which tokens are predicted, and what the model sees of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.draws import keyed
from pretrain.errors import UserError
from pretrain.families.bert.masking import Masking, choose, corrupt


@given(seed=st.integers(0, 2**32), rate=st.floats(0.01, 1))
def test_whole_words(seed: int, rate: float) -> None:
    """All tokens of a word or none, text only; as many as the rate says, up to the word that crosses it."""
    draw = np.random.default_rng(seed)
    text = np.arange(40) < draw.integers(0, 41, size=(20, 1))
    starts = draw.random((20, 40)) < 0.5
    starts[:, 0] = True
    chosen = choose(text, starts, keyed(seed, np.arange(20)), rate)
    assert not (chosen & ~text).any()
    word = np.cumsum(starts, axis=1)
    for row in range(20):
        words = word[row][text[row]]
        taken = chosen[row][text[row]]
        longest = max(np.bincount(words), default=0)
        assert abs(taken.sum() - rate * len(words)) < max(longest, 1)
        assert set(words[taken]).isdisjoint(words[~taken])


def test_expected_number() -> None:
    """Over 50,000 rows of words of one to four tokens, the rate itself, within 3 sigma of the spread found."""
    n = 50_000
    starts = np.tile(np.isin(np.arange(20), [0, 1, 3, 4, 8, 9, 10, 13, 17, 18]), (n, 1))
    chosen = choose(np.ones((n, 20), dtype=bool), starts, keyed(1, np.arange(n)), 0.15)
    counts = chosen.sum(axis=1)
    assert abs(counts.mean() - 3) < 3 * counts.std() / np.sqrt(n)
    assert chosen.mean(axis=0).min() > 0.1


def test_corruption() -> None:
    """80 % [MASK], 10 % the token, 10 % any replaceable id, within 4 sigma; nothing else changes."""
    n = 100_000
    tokens = np.full((n, 2), 50)
    chosen = np.tile([True, False], (n, 1))
    seen = corrupt(tokens, chosen, keyed(2, np.arange(n)), Masking(), mask=4, replaceable=(5, 15))
    assert (seen[:, 1] == 50).all()
    assert set(seen[:, 0].tolist()) == {4, 50, *range(5, 15)}
    for value, share in ((4, 0.8), (50, 0.1), *((piece, 0.01) for piece in range(5, 15))):
        assert abs((seen[:, 0] == value).mean() - share) < 4 * np.sqrt(share * (1 - share) / n)


def test_bad_rates() -> None:
    """Each is refused."""
    for wrong in ({"rate": 0}, {"rate": 1.1}, {"mask": 0.9, "random": 0.2}, {"random": -0.1}):
        with pytest.raises(UserError):
            Masking(**wrong)

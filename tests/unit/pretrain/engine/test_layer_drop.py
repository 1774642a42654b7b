"""Which blocks a step leaves out."""

import numpy as np

from pretrain.config import LayerDrop
from pretrain.engine.dropout import left_out, step_key


def test_share_that_is_left_out() -> None:
    """Over 10,000 draws within three standard deviations of p, apart for blocks, and for the two parts of each."""
    for drop in (LayerDrop(0.2), LayerDrop(0.2, sublayers=True)):
        drawn = np.concatenate([left_out(step_key(1, "first", step), 8, 10, 12, drop) for step in range(1000)])
        assert drawn.shape == (10_000, 12, 1 + drop.sublayers)
        sigma = (0.2 * 0.8 / 10_000) ** 0.5
        assert np.abs(drawn.mean(0) - 0.2).max() < 3 * sigma
        pairs = np.corrcoef(drawn.reshape(10_000, -1).T)
        assert np.abs(pairs - np.eye(len(pairs))).max() < 0.05
    assert (left_out(7, 2, 3, 4, drop) == left_out(7, 0, 5, 4, drop)[2:]).all()

"""The frequencies of rotary embeddings (Su et al., 2021, "RoFormer"), plain and scaled for longer texts."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi

import numpy as np
from numpy.typing import NDArray

SCALING = ("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_length")
"""The scalars of a model whose frequencies are scaled as those of Llama 3.1 are; a factor of 1 leaves them plain."""


def frequencies(head_dim: int, scalars: Mapping[str, float]) -> NDArray[np.float64]:
    """[head_dim / 2]: radians a position by which each pair turns."""
    plain = np.asarray(scalars["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))
    if scalars.get(SCALING[0], 1.0) == 1.0:
        return plain
    return _scaled(plain, *(scalars[name] for name in SCALING))


def _scaled(plain: NDArray[np.float64], factor: float, low: float, high: float, length: float) -> NDArray[np.float64]:
    """Slow pairs, which turn less than `low` times in `length` positions, are `factor` times slower, those that turn
    more than `high` times stay, and those between go from one to the other (Grattafiori et al., 2024, "The Llama 3 herd
    of models", section 3.4; the rule is that of its code).

    It is a function of each frequency alone, so it keeps what an operator on head_dim keeps.
    """
    turns = length * plain / (2 * pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray((1.0 - share) * plain / factor + share * plain)

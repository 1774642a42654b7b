"""Gathering many ranges of an array at once."""

import numpy as np
from numpy.typing import NDArray


def ragged(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """The indices start, start + 1, ..., start + length - 1 of every range, one range after the other (int64)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if not len(ends):
        return np.empty(0, dtype=np.int64)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])

"""Random numbers with an address: a draw is a function of its key alone, so samples can be made in any order.

Keys are hashed by the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
2014), a part at a time; numpy's Philox cannot be keyed by arrays.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of uint64 whose output bits all depend on all input bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed(key: int | NDArray[np.uint64], *parts: str | int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """The key of a part of something: uint64, of the shape that ``key`` and the parts broadcast to."""
    state = np.asarray(key % 2**64 if isinstance(key, int) else key, dtype=np.uint64)  # a seed is any whole number
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        with np.errstate(over="ignore"):  # numpy warns of scalars that wrap, not of arrays
            state = mix(state + (np.asarray(number).astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return state


def uniform(key: int | NDArray[np.uint64], *parts: str | int | NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniform draws from [0, 1), one for each key."""
    return (keyed(key, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(limit: int | NDArray[np.integer], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers from 0 to limit - 1 out of uniform draws."""
    return (draws * limit).astype(np.int64)

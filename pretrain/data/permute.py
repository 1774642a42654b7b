"""A random permutation that is never stored."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pretrain.data.draws import mix

ROUNDS = 8


def permuted(index: NDArray[np.integer], size: int, *key: object) -> NDArray[np.int64]:
    """Where the permutation of range(size) that belongs to ``key`` takes the given indices (int64, the same shape).

    A Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002) over the
    smallest 4**b >= size. It takes no memory and no start-up time at any size, and unlike a random generator's
    shuffle it cannot change with a library's version: validation documents stay validation documents.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")

    def encipher(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        return (left << half) | right

    out = encipher(np.asarray(index).astype(np.uint64).ravel())
    while len(outside := np.flatnonzero(out >= np.uint64(size))):
        out[outside] = encipher(out[outside])
    return out.astype(np.int64).reshape(np.shape(index))

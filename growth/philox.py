"""Random numbers with an address: the value of an element depends on (seed, tensor name, its flat index) alone.

Any box of any tensor can be drawn on its own, so every layout draws the same model. The generator is Philox4x64-10
(Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), one 64-bit word an element; its two halves give a
normal number by Box and Muller (1958). Logarithm and sine are polynomials in IEEE additions and multiplications only,
so that every machine draws the same bits, whatever its mathematical library.
"""

from __future__ import annotations

import math
import sys
from hashlib import blake2b

import numpy as np
import torch

from growth.box import Box

_WORDS = 4  # 64-bit words in one block of Philox
_GAP = 1 << 10  # words that are drawn in vain rather than passed over
_CHUNK = 1 << 14  # elements turned into normals at a time: the temporaries stay in the cache

_EXPONENT = np.int64(-1 << 52)  # the bits of a double that are its sign and its exponent
_SQRT_HALF = np.float64(math.sqrt(0.5)).view(np.int64)

# log m = 2 (s + s^3/3 + ...), s = (m-1)/(m+1), |s| <= 0.172; sin x = x - x^3/6 + ..., |x| <= pi/2.
_LOG = tuple(2.0 / (2 * n + 1) for n in range(8))
_SIN = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(9))


def _odd_polynomial(x: np.ndarray, coefficients: tuple[float, ...], square: np.ndarray, out: np.ndarray) -> None:
    np.multiply(x, x, out=square)
    np.multiply(square, coefficients[-1], out=out)
    out += coefficients[-2]
    for c in coefficients[-3::-1]:
        out *= square
        out += c
    out *= x


def _normals(words: np.ndarray, out: np.ndarray) -> None:
    """uint64 [n] -> float32 [n], standard normal."""
    halves = words.view(np.uint32).reshape(-1, 2)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    u, x, y, z = np.empty((4, len(words)))
    u[:] = halves[:, high]
    u += 0.5
    # u = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), from the bits of u
    bits, exponent = u.view(np.int64), x.view(np.int64)
    np.subtract(bits, _SQRT_HALF, out=exponent)
    exponent &= _EXPONENT
    bits -= exponent
    np.multiply(exponent, 2.0**-52, out=y)
    y -= 32.0
    y *= math.log(2.0)
    np.subtract(u, 1.0, out=x)
    u += 1.0
    x /= u
    _odd_polynomial(x, _LOG, z, u)
    u += y
    u *= -2.0
    np.sqrt(u, out=u)
    # cos(2 pi t) = sin(2 pi (|t - 1/2| - 1/4))
    x[:] = halves[:, low]
    x *= 2.0**-32
    x -= 0.5
    np.abs(x, out=x)
    x -= 0.25
    x *= 2.0 * math.pi
    _odd_polynomial(x, _SIN, z, y)
    np.multiply(u, y, out=out, casting="same_kind")


def _runs(shape: tuple[int, ...], box: Box) -> tuple[int, np.ndarray]:
    """The length of the longest contiguous runs that make up a box, and the flat index at which each begins."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    lead = len(shape)
    length = 1
    while lead > 0:
        lead -= 1
        length *= box.stop[lead] - box.start[lead]
        if box.start[lead] > 0 or box.stop[lead] < shape[lead]:
            break
    starts = np.array([sum(box.start[d] * strides[d] for d in range(lead, len(shape)))])
    for d in range(lead):
        starts = np.add.outer(starts, np.arange(box.start[d], box.stop[d]) * strides[d]).reshape(-1)
    return length, starts


class _Words:
    """The words of one tensor, from any place on."""

    def __init__(self, seed: int, name: str) -> None:
        digest = blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
        self._philox = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
        self._block = 0

    def at(self, start: int, count: int) -> np.ndarray:
        """uint64 [count]: the words start...start + count."""
        block, skip = divmod(start, _WORDS)
        if block != self._block:
            self._philox.advance(block - self._block)
        blocks = -(-(skip + count) // _WORDS)
        self._block = block + blocks
        return self._philox.random_raw(blocks * _WORDS)[skip : skip + count]

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """uint64 [len(starts) * length]: the words of several runs."""
        steps = np.diff(starts)
        if len(steps) and (steps == steps[0]).all() and steps[0] - length <= _GAP:  # what is between is drawn as well
            span = self.at(int(starts[0]), int(starts[-1] - starts[0]) + length)
            shape, strides = (len(starts), length), (8 * int(steps[0]), 8)
            runs = np.lib.stride_tricks.as_strided(span, shape, strides, writeable=False)
            return np.ascontiguousarray(runs).reshape(-1)
        return np.concatenate([self.at(start, length) for start in starts.tolist()])


def normal(seed: int, name: str, shape: tuple[int, ...], box: Box) -> torch.Tensor:
    """Standard normal numbers, float32 of `box.shape`, for the region `box` of the tensor `name` of this `shape`."""
    out = np.empty(box.numel, dtype=np.float32)
    if box.numel:
        words = _Words(seed, name)
        length, starts = _runs(tuple(shape), box)
        rows = max(1, _CHUNK // length)  # short runs are turned into normals together, long ones in parts
        for i in range(0, len(starts), rows):
            some = starts[i : i + rows]
            for j in range(0, length, _CHUNK):
                n = min(_CHUNK, length - j)
                at = i * length + j
                _normals(words.rows(some + j, n), out[at : at + len(some) * n])
    return torch.from_numpy(out.reshape(box.shape))

"""Random numbers with an address: the value of an element depends on (seed, tensor name, its flat index) alone.

Any box of any tensor can be drawn on its own, so every layout draws the same model. The generator is Philox4x64-10
(Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), one 64-bit word an element; its two halves give a
normal number by Box and Muller (1958). Logarithm and sine are polynomials in IEEE additions and multiplications only,
so that every machine draws the same bits, whatever its mathematical library.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import torch

from growth.box import Box

_WORDS = 4  # 64-bit words in one block of Philox
_CHUNK = 1 << 13  # elements turned into normals at a time: the temporaries stay in the cache

# log m = 2 (s + s^3/3 + ...), s = (m-1)/(m+1), |s| <= 0.172; sin x = x - x^3/6 + ..., |x| <= pi/2.
_LOG = tuple(2.0 / (2 * n + 1) for n in range(8))
_SIN = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(9))


def _odd_polynomial(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    square = x * x
    value = square * coefficients[-1]
    value += coefficients[-2]
    for c in coefficients[-3::-1]:
        value *= square
        value += c
    value *= x
    return value


def _normals(words: np.ndarray) -> np.ndarray:
    """uint64 [n] -> float32 [n], standard normal."""
    halves = words.view(np.uint32).reshape(-1, 2)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    u = halves[:, high].astype(np.float64)
    u += 0.5
    mantissa, exponent = np.frexp(u)  # u = mantissa * 2^exponent, mantissa in [0.5, 1)
    small = mantissa < math.sqrt(0.5)
    mantissa *= np.add(small, 1.0, out=u)
    exponent -= small
    radius = mantissa - 1.0
    mantissa += 1.0
    radius /= mantissa
    radius = _odd_polynomial(radius, _LOG)
    radius += np.multiply(exponent - 32, math.log(2.0), out=u)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    # cos(2 pi t) = sin(2 pi (|t - 1/2| - 1/4))
    t = halves[:, low].astype(np.float64)
    t *= 2.0**-32
    t -= 0.5
    np.abs(t, out=t)
    t -= 0.25
    t *= 2.0 * math.pi
    radius *= _odd_polynomial(t, _SIN)
    return radius.astype(np.float32)


def _runs(shape: tuple[int, ...], box: Box) -> tuple[int, Iterator[int]]:
    """The length of the longest contiguous runs that make up a box, and the flat index at which each begins."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    lead = len(shape)
    length = 1
    while lead > 0:
        lead -= 1
        length *= box.stop[lead] - box.start[lead]
        if box.start[lead] > 0 or box.stop[lead] < shape[lead]:
            break
    inside = sum(box.start[d] * strides[d] for d in range(lead, len(shape)))

    def starts() -> Iterator[int]:
        for index in np.ndindex(*box.shape[:lead]):
            yield inside + sum((box.start[d] + index[d]) * strides[d] for d in range(lead))

    return length, starts()


def normal(seed: int, name: str, shape: tuple[int, ...], box: Box) -> torch.Tensor:
    """Standard normal numbers, float32 of `box.shape`, for the region `box` of the tensor `name` of this `shape`."""
    key = np.frombuffer(blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest(), dtype="<u8").astype(np.uint64)
    if box.numel == 0:
        return torch.empty(box.shape)
    length, starts = _runs(tuple(shape), box)
    words = np.empty((box.numel // length, length), dtype=np.uint64)
    for row, start in enumerate(starts):
        block, skip = divmod(start, _WORDS)
        words[row] = np.random.Philox(key=key, counter=block).random_raw(skip + length)[skip:]
    flat = words.reshape(-1)
    out = np.empty(box.numel, dtype=np.float32)
    for i in range(0, box.numel, _CHUNK):
        out[i : i + _CHUNK] = _normals(flat[i : i + _CHUNK])
    return torch.from_numpy(out.reshape(box.shape))

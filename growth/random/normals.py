"""Philox and its words made normal numbers, compiled at the import, which is done where they are drawn.

Philox4x64-10: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3". Box and Muller (1958): logarithm and
cosine are polynomials in IEEE additions and multiplications only, none of them fused, so that every machine draws the
same bits, whatever its mathematical library.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from growth.compiled import compiled

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)

_EXPONENT = np.int64(-1 << 52)  # the bits of a double that are its sign and its exponent
_SQRT_HALF = np.float64(math.sqrt(0.5)).view(np.int64)
_LOG_2, _TAU = math.log(2.0), 2.0 * math.pi
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)

# log m = 2 (s + s^3/3 + ...), s = (m-1)/(m+1), |s| <= 0.172; sin x = x - x^3/6 + ..., |x| <= pi/2.
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (2.0 / (2 * n + 1) for n in range(8))
_S0, _S1, _S2, _S3, _S4, _S5, _S6, _S7, _S8 = ((-1.0) ** n / math.factorial(2 * n + 1) for n in range(9))


@intrinsic
def _product(context: Any, a: Any, b: Any) -> Any:
    """The upper and the lower 64 bits of the product of two 64-bit words."""

    def code(context: Any, builder: Any, signature: Any, factors: Any) -> Any:
        word, wide = ir.IntType(64), ir.IntType(128)
        product = builder.mul(*(builder.zext(x, wide) for x in factors))
        upper = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, [upper, builder.trunc(product, word)])

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), code


@compiled("void(u8, u8, i8[::1], i8, u8[::1])")
def words(key0: Any, key1: Any, starts: Any, length: Any, out: Any) -> None:  # pragma: no cover
    """The words start...start + length of the sequence of a key, for each of `starts`, one after the other. It is the
    sequence of numpy's Philox."""
    at = 0
    for start in starts:
        for block in range(start // 4, (start + length + 3) // 4):
            a, b, c, d = np.uint64(block + 1), np.uint64(0), np.uint64(0), np.uint64(0)
            k0, k1 = key0, key1
            for _ in range(10):
                high_a, low_a = _product(_MULTIPLIERS[0], a)
                high_c, low_c = _product(_MULTIPLIERS[1], c)
                a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
                k0 += _WEYL[0]
                k1 += _WEYL[1]
            first = 4 * block - start
            for n, word in enumerate((a, b, c, d)):
                if 0 <= first + n < length:
                    out[at + first + n] = word
        at += length


@compiled("void(u8[::1], f4, f4[::1])")
def normals(words: Any, std: Any, out: Any) -> None:  # pragma: no cover
    """uint64 [n] -> float32 [n], normal with a standard deviation of `std`. `words` are used up.

    In three loops, each of which becomes vector instructions.
    """
    n = len(out)
    u, t = np.empty(n), np.empty(n)
    bits, exponent = u.view(np.int64), words.view(np.int64)
    for i in range(n):
        u[i] = np.float64(np.int64(words[i] >> _HALF)) + 0.5
        t[i] = np.float64(np.int64(words[i] & _LOW))
    for i in range(n):  # u = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), from the bits of u
        b = bits[i]
        exponent[i] = (b - _SQRT_HALF) & _EXPONENT
        bits[i] = b - exponent[i]
    for i in range(n):
        m = u[i]
        x = (m - 1.0) / (m + 1.0)
        s = x * x
        log = ((((((s * _L7 + _L6) * s + _L5) * s + _L4) * s + _L3) * s + _L2) * s + _L1) * s + _L0
        radius = math.sqrt((log * x + (exponent[i] * 2.0**-52 - 32.0) * _LOG_2) * -2.0)
        x = (abs(t[i] * 2.0**-32 - 0.5) - 0.25) * _TAU  # cos(2 pi t) = sin(2 pi (|t - 1/2| - 1/4))
        s = x * x
        sin = (((((((s * _S8 + _S7) * s + _S6) * s + _S5) * s + _S4) * s + _S3) * s + _S2) * s + _S1) * s + _S0
        out[i] = np.float32(radius * (sin * x)) * std

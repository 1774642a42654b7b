"""Noise that sums to nothing over copies, compiled; a process compiles it when it first needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from growth.compiled import compiled, flat
from growth.recipe import Copies

_SHORT = 8  # runs of fewer indices are not worth vector instructions


def multiply(out: torch.Tensor, z: torch.Tensor, at: int, copies: Copies) -> None:
    """out[:, i] *= 1 + noise * (z[:, at + i] - the sum over the copies c of index i of share * z[:, c]), in the type of
    `out`; indices without another copy stay as they are.

    out: [rows, n]; z: [rows, the span of the copies], of the same type.
    """
    edges, index, share, count = copies.runs
    new = out if out.stride(1) == 1 else out.contiguous()
    to, row = flat(new)
    noise = to.dtype.type(copies.noise)
    _multiply(to, row, *flat(z), len(out), at, edges, index, share.astype(to.dtype), count, noise)
    if new is not out:
        out.copy_(new)


@compiled()
def _multiply(
    out: Any, out_row: int, z: Any, z_row: int, rows: int, at: int, edges: Any, index: Any, share: Any, count: Any,
    noise: Any,
) -> None:  # pragma: no cover
    one = noise / noise
    null = np.empty(edges[-1], out.dtype)
    for row in range(rows):
        for run in range(len(count)):
            a, n, terms = edges[run], edges[run + 1] - edges[run], count[run]
            if terms < 2:
                continue
            new, own = out[row * out_row + a : row * out_row + a + n], z[row * z_row + at + a : row * z_row + at + a + n]
            if n < _SHORT:
                for i in range(n):
                    x = own[i]
                    for k in range(terms):
                        x -= z[row * z_row + index[run, k] + i] * share[run, k]
                    new[i] *= x * noise + one
                continue
            x, last = null[:n], terms - 1
            for k in range(last):
                f, copy = share[run, k], z[row * z_row + index[run, k] : row * z_row + index[run, k] + n]
                if k == 0:
                    for i in range(n):
                        x[i] = own[i] - copy[i] * f
                else:
                    for i in range(n):
                        x[i] -= copy[i] * f
            f, copy = share[run, last], z[row * z_row + index[run, last] : row * z_row + index[run, last] + n]
            for i in range(n):
                new[i] *= (x[i] - copy[i] * f) * noise + one

"""Weighted sums of rows, compiled; a process compiles them when it first needs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from growth.compiled import compiled, flat

_WIDTH = 1 << 10  # So many columns are summed at a time: their sums stay in the cache.


def add_rows(
    out: torch.Tensor, to: np.ndarray, old: torch.Tensor, index: np.ndarray, factor: np.ndarray, *, first: bool
) -> None:
    """out[to[i]] = (if `first`) or += the sum over k of factor[i, k] * old[index[i, k]], one after the other, in the
    type of `out`.

    out and old: matrices of as many columns and of the same type, `out` contiguous along them; to: int64 [n]; index:
    int64 [n, K]; factor: [n, K].
    """
    new, row = flat(out)
    _add_rows(new, row, to, *flat(old), index, factor.astype(new.dtype), out.shape[1], first)


def add_weighted(total: torch.Tensor, rows: torch.Tensor, weights: np.ndarray) -> None:
    """total[m] += sum over i of weights[m, i] * rows[i], one i after the other.

    total: float64 [M, columns], contiguous; rows: [n, columns]; weights: float64 [M, n].
    """
    _add_weighted(total.numpy(), *flat(rows), np.ascontiguousarray(weights))


@compiled()
def _add_rows(
    out: Any, out_row: int, to: Any, old: Any, old_row: int, index: Any, factor: Any, columns: int, first: bool
) -> None:  # pragma: no cover
    for i in range(len(to)):
        new = out[to[i] * out_row : to[i] * out_row + columns]
        for k in range(index.shape[1]):
            row, f = old[index[i, k] * old_row : index[i, k] * old_row + columns], factor[i, k]
            if first and k == 0:
                for c in range(columns):
                    new[c] = row[c] * f
            else:
                for c in range(columns):
                    new[c] += row[c] * f


@compiled()
def _add_weighted(total: Any, rows: Any, stride: int, weights: Any) -> None:  # pragma: no cover
    columns = total.shape[1]
    for a in range(0, columns, _WIDTH):
        b = min(a + _WIDTH, columns)
        for m in range(total.shape[0]):
            to = total[m, a:b]
            for i in range(weights.shape[1]):
                w = weights[m, i]
                if w != 0.0:
                    row = rows[i * stride + a : i * stride + b]
                    for c in range(b - a):
                        to[c] += w * row[c]

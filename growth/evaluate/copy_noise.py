"""Noise that sums to nothing over copies, compiled; a process compiles it when it first needs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from growth.compiled import compiled, flat
from growth.evaluate.dimension import Copies

_SHORT = 8  # Runs of fewer indices than this, on average, are too short for vector instructions.


class Null:
    """Noise along the last dimension of a matrix, of `dtype`, that the readers of copies take."""

    def __init__(self, copies: Copies, at: int, dtype: torch.dtype) -> None:
        """at: where the first index of the matrix is in the span of the copies."""
        number = torch.empty(0, dtype=dtype).numpy().dtype.type
        self._copies = at, copies.index - copies.span[0], copies.share.astype(number)
        self._scale = number(copies.noise), number(1)
        self._edges = np.append(copies.runs, len(copies.index))
        self._by_run = len(copies.runs) * _SHORT < len(copies.index)

    def multiply(self, out: torch.Tensor, z: torch.Tensor) -> None:
        """out[:, i] *= 1 + noise * (z[:, at + i] - the sum over the copies c of index i of share * z[:, c]); indices
        without another copy stay as they are.

        out: [rows, n]; z: [rows, the span of the copies].
        """
        new = out if out.stride(1) == 1 else out.contiguous()
        to, row = flat(new)
        starts = row * np.arange(len(out))
        if self._by_run:
            _by_run(to, starts, *flat(z), self._edges, *self._copies, *self._scale)
        else:
            _by_index(to, starts, *flat(z), *self._copies, *self._scale)
        if new is not out:
            out.copy_(new)


@compiled()
def _by_index(
    out: Any, starts: Any, z: Any, z_row: int, at: int, index: Any, share: Any, noise: Any, one: Any
) -> None:  # pragma: no cover
    for row, start in enumerate(starts):
        drawn, new = z[row * z_row :], out[start : start + len(index)]
        for i in range(len(index)):
            x = drawn[at + i]
            for k in range(index.shape[1]):
                if index[i, k] >= 0:
                    x -= drawn[index[i, k]] * share[i, k]
            new[i] *= (x * noise + one) if index.shape[1] > 1 and index[i, 1] >= 0 else one


@compiled()
def _by_run(
    out: Any, starts: Any, z: Any, z_row: int, edges: Any, at: int, index: Any, share: Any, noise: Any, one: Any
) -> None:  # pragma: no cover
    null = np.empty(len(index), out.dtype)
    for row, start in enumerate(starts):
        drawn = z[row * z_row :]
        for run in range(len(edges) - 1):
            a, b = edges[run], edges[run + 1]
            last = (index[a] >= 0).sum() - 1
            if last == 0:
                continue
            n, own, new = b - a, drawn[at + a : at + b], out[start + a : start + b]
            for k in range(last):
                copy, f = drawn[index[a, k] : index[a, k] + n], share[a, k]
                for i in range(n):
                    null[i] = own[i] - copy[i] * f
                own = null
            copy, f = drawn[index[a, last] : index[a, last] + n], share[a, last]
            for i in range(n):
                new[i] *= (own[i] - copy[i] * f) * noise + one

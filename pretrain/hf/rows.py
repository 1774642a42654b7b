"""The rows of a vocabulary in another order, a piece at a time."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from growth import Box, LogicalTensor

NEAR = 1 << 18  # two rows with at most so many bytes between them are read together


def vocabulary_dim(tensor: LogicalTensor) -> int | None:
    """The dimension of a tensor that is the vocabulary; None if there is none."""
    dims = [d for d, dim in enumerate(tensor.spec.dims) if dim.axes == ("vocab",)]
    return dims[0] if dims else None


def reordered(
    read: Callable[[Box], torch.Tensor], tensor: LogicalTensor, source: NDArray[np.int64] | None, box: Box
) -> torch.Tensor:
    """The box of the tensor whose vocabulary row i is row source[i] of the tensor that `read` reads (None: row i).

    Reads rows that are near each other in one go: a vocabulary is mostly in order, whichever the order.
    """
    dim = vocabulary_dim(tensor)
    if source is None or dim is None:
        return read(box)
    source_rows = source[box.start[dim] : box.stop[dim]]
    out = torch.empty(box.shape, dtype=torch.float32)
    order = np.argsort(source_rows, kind="stable")
    rows = source_rows[order]
    near = max(1, NEAR // (4 * (box.numel // len(source_rows))))
    for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > near) + 1):
        start, stop = list(box.start), list(box.stop)
        start[dim], stop[dim] = int(rows[part[0]]), int(rows[part[-1]]) + 1
        run = read(Box(tuple(start), tuple(stop))).to(torch.float32)
        picked = run.index_select(dim, torch.from_numpy(rows[part] - start[dim]))
        out.index_copy_(dim, torch.from_numpy(order[part]), picked)
    return out

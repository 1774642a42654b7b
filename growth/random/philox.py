"""Random numbers with an address: the value of an element depends on (seed, tensor name, its flat index) alone.

Any box of any tensor can be drawn on its own, so every layout draws the same model. The generator is Philox4x64-10
(Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), one 64-bit word an element; its two halves give a
normal number (see `normals`).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch

from growth.box import Box

_CHUNK = 1 << 14  # So many elements are drawn at a time: the temporaries stay in the cache.


def normal(
    seed: int, name: str, shape: tuple[int, ...], box: Box, *, std: float = 1.0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Normal numbers, float32 of `box.shape`, for the region `box` of the tensor `name` of this `shape`; in `out` if
    it is given, which must be contiguous along its last dimension."""
    from growth.random.normals import normals, words  # It compiles when it is imported.

    out = torch.empty(box.shape) if out is None else out
    if not box.numel:
        return out
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    key = [int.from_bytes(half, "little") for half in (digest[:8], digest[8:])]
    starts, to = _rows(shape, box), out.view(-1, box.shape[-1]).numpy()
    count = max(1, _CHUNK // box.shape[-1])  # Short rows are drawn together, long ones in parts.
    for i in range(0, len(starts), count):
        some = starts[i : i + count]
        for j in range(0, box.shape[-1], _CHUNK):
            part = to[i : i + count, j : j + _CHUNK]
            drawn = np.empty(part.size, dtype=np.uint64)
            flat = part.reshape(-1) if part.flags.c_contiguous else np.empty(part.size, dtype=np.float32)
            words(*key, some + j, part.shape[1], drawn)
            normals(drawn, std, flat)
            if not part.flags.c_contiguous:
                part[:] = flat.reshape(part.shape)
    return out


def _rows(shape: tuple[int, ...], box: Box) -> np.ndarray:
    """The flat index at which each row of the box begins."""
    starts = np.zeros(1, dtype=np.int64)
    for n, a, b in zip(shape[:-1], box.start, box.stop, strict=False):
        starts = np.add.outer(starts * n, np.arange(a, b)).reshape(-1)
    return starts * shape[-1] + box.start[-1]

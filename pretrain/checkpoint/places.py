"""Where the boxes of a checkpoint lie: they tile every tensor, and fill every file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from growth.box import Box

MEMORY = "memory"
"""The kind of what the lanes of a run remember: tensors of their own, that no model has."""
BLOCK = 1 << 20  # bytes: each block of a file has a hash
HEADER = 16  # bytes: the header of a safetensors file with a tensor is longer


@dataclass(frozen=True)
class StoredBox:
    """A box of a tensor: its fp32 elements are contiguous, row-major, from byte `offset` of `file` on."""

    file: str
    offset: int
    box: Box


@dataclass(frozen=True)
class TensorEntry:
    """A logical tensor: its full shape and, per kind, the boxes that tile it."""

    shape: tuple[int, ...]
    boxes: Mapping[str, tuple[StoredBox, ...]]


@dataclass(frozen=True)
class StoredFile:
    """A tensor file: its size in bytes, and the xxh3_128 of each 1 MiB block of it (the last may be shorter) in hex."""

    size: int
    blocks: tuple[str, ...]


def check_places(tensors: Mapping[str, TensorEntry], files: Mapping[str, StoredFile]) -> None:
    """Raises ValueError unless every file has the blocks of its size, every tensor has boxes of the same kinds, or of
    MEMORY alone, that tile it, and every file holds boxes of its kind, one after the other, from its header to its end.
    """
    for name, file in files.items():
        if len(file.blocks) != -(-file.size // BLOCK):
            raise ValueError(f"{name}: {len(file.blocks)} blocks for {file.size} bytes of {BLOCK} each")
    kinds = {kind for tensor in tensors.values() for kind in tensor.boxes} - {MEMORY}
    inside: dict[str, list[tuple[int, int, str]]] = {name: [] for name in files}
    for name, tensor in tensors.items():
        if (missing := sorted(kinds - set(tensor.boxes))) and set(tensor.boxes) != {MEMORY}:
            raise ValueError(f"{name} has no {' and no '.join(missing)}, and other tensors do")
        numels: dict[tuple[Box, ...], list[int]] = {}  # all kinds often have the same tiling
        for kind, stored in tensor.boxes.items():
            what, tiling = f"{kind} {name}", tuple([b.box for b in stored])
            if tiling not in numels:
                numels[tiling] = check_tiling(what, tensor.shape, tiling)
            for b, numel in zip(stored, numels[tiling], strict=True):
                if b.file not in files:
                    raise ValueError(f"{what} is in {b.file}, which is no file of this checkpoint")
                if not b.file.startswith(f"{kind}-"):
                    raise ValueError(f"{what} is in {b.file}, which is of another kind")
                inside[b.file].append((b.offset, 4 * numel, what))
    for name, parts in inside.items():
        _check_filled(name, files[name].size, sorted(parts))


def _check_filled(name: str, size: int, parts: Sequence[tuple[int, int, str]]) -> None:
    if not parts:
        raise ValueError(f"{name} holds no tensor")
    at = parts[0][0]
    if at < HEADER or at % 4:
        raise ValueError(f"{name}: {parts[0][2]} begins at byte {at}, where the header is")
    for offset, length, what in parts:
        if offset != at:
            raise ValueError(f"{name}: {what} begins at byte {offset}, and what is before it ends at {at}")
        at += length
    if at != size:
        raise ValueError(f"{name}: its tensors end at byte {at}, and it has {size}")


def check_tiling(what: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> list[int]:
    """How many elements each box has. Raises ValueError unless they cover every element of the shape exactly once."""
    size, dims, total = len(boxes), len(shape), prod(shape)
    if total >= 1 << 60:
        raise ValueError(f"{what}: no file has room for shape {shape}")
    if any(len(b.start) != dims or len(b.stop) != dims for b in boxes):
        raise ValueError(f"{what}: a box has another number of dimensions than shape {shape}")
    starts = np.array([b.start for b in boxes], dtype=np.int64).reshape(size, dims)
    stops = np.array([b.stop for b in boxes], dtype=np.int64).reshape(size, dims)

    def words(i: int) -> str:
        return f"{boxes[i].start}:{boxes[i].stop}"

    outside = np.any((starts < 0) | (starts >= stops) | (stops > np.array(shape, dtype=np.int64)), axis=1)
    if outside.any():
        raise ValueError(f"{what}: box {words(int(outside.argmax()))} is empty or outside of shape {shape}")
    for begin in range(0, size, 512):
        some = slice(begin, begin + 512)
        low = np.maximum(starts[some, None], starts[None])
        overlap = np.all(low < np.minimum(stops[some, None], stops[None]), axis=2)
        rows = np.arange(len(overlap))
        overlap[rows, rows + begin] = False
        if overlap.any():
            row, other = np.unravel_index(int(overlap.argmax()), overlap.shape)
            raise ValueError(f"{what}: {words(int(row) + begin)} and {words(int(other))} overlap")
    numels = (stops - starts).prod(axis=1)
    if numels.sum() != total:
        raise ValueError(f"{what}: the boxes hold {numels.sum()} of the {total} elements of shape {shape}")
    counts: list[int] = numels.tolist()
    return counts

"""Reads any box of any tensor of a checkpoint, touching only the blocks that the box touches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from growth.box import Box
from pretrain.checkpoint.blocks import BLOCK, BlockReader
from pretrain.checkpoint.manifest import AVERAGE, CorruptCheckpoint, Manifest
from pretrain.checkpoint.places import StoredBox

AHEAD = 8  # blocks that the disk is asked for at a time, so that up to twice as many are read ahead


class Reader:
    """A checkpoint opened for reading; a context manager.

    Raises CorruptCheckpoint or UserError as `Manifest.load` does. Memory: the blocks last read, at most 32 MiB.
    With `verify` off the blocks' hashes are not checked, which is for measurements only.
    """

    def __init__(self, path: Path, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self._blocks = BlockReader(self.path, verify)
        self._bounds: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        self._blocks.close()

    @property
    def bytes_read(self) -> int:
        """Bytes read from tensor files so far."""
        return self._blocks.bytes_read

    @property
    def blocks_read(self) -> int:
        """Blocks read from tensor files so far."""
        return self._blocks.blocks_read

    def has(self, kind: str) -> bool:
        """Whether the checkpoint holds this kind (moments may be absent: an imported model)."""
        return self.manifest.has(kind)

    def read(self, kind: str, name: str, box: Box, out: torch.Tensor | None = None) -> torch.Tensor:
        """The fp32 content of a box, in a new tensor or in `out` (of its shape; any strides, device and dtype).

        Raises KeyError for a tensor or kind that the checkpoint does not have, ValueError for a box outside of the
        tensor or an `out` of another shape, CorruptCheckpoint for anything that is not as it was written.
        """
        entry = self.manifest.tensors[name]
        if len(box.start) != len(entry.shape) or box.intersect(Box.whole(entry.shape)) != box:
            raise ValueError(f"{name}: box {box.start}:{box.stop} is empty or outside of shape {entry.shape}")
        if out is not None and tuple(out.shape) != box.shape:
            raise ValueError(f"{name}: out has shape {tuple(out.shape)} and the box {box.shape}")
        direct = out is not None and out.device.type == "cpu" and out.dtype == torch.float32
        target = out.detach() if out is not None and direct else torch.empty(box.shape, dtype=torch.float32)
        array = target.numpy()
        numel_read = 0
        for stored in self._touched(kind, name, box):
            part = stored.box.intersect(box)
            assert part is not None
            try:
                # With the dots a scalar too gives a view.
                place: tuple[Any, ...] = (*part.relative_to(box).slices(), ...)
                self._read_part(stored, part.relative_to(stored.box), array[place])
            except CorruptCheckpoint as error:
                raise CorruptCheckpoint(f"{error}; it holds {kind} of {name}") from error
            numel_read += part.numel
        if numel_read != box.numel:
            raise CorruptCheckpoint(
                f"{self.path}: {box.numel - numel_read} elements of {kind} {name} {box.start}:{box.stop} are in no file"
            )
        if out is None:
            return target
        if not direct:
            out.detach().copy_(target)
        return out

    def read_average(self, kind: str, name: str, box: Box) -> torch.Tensor:
        """As `read`, with the moving average of the weights in place of the weights."""
        return self.read(AVERAGE if kind == "weight" else kind, name, box)

    def _touched(self, kind: str, name: str, box: Box) -> list[StoredBox]:
        """The stored boxes that share an element with `box`."""
        boxes = self.manifest.tensors[name].boxes[kind]
        if (kind, name) not in self._bounds:
            dims = len(box.start)
            self._bounds[kind, name] = (
                np.array([b.box.start for b in boxes], dtype=np.int64).reshape(len(boxes), dims),
                np.array([b.box.stop for b in boxes], dtype=np.int64).reshape(len(boxes), dims),
            )
        starts, stops = self._bounds[kind, name]
        hits = np.all((starts < box.stop) & (stops > box.start), axis=1)
        return [boxes[i] for i in np.flatnonzero(hits)]

    def _read_part(self, stored: StoredBox, part: Box, out: np.ndarray) -> None:
        """Fills `out` with a part of a stored box; `part` is in the coordinates of that box."""
        file = self.manifest.files[stored.file]
        shape = stored.box.shape
        first, last = part.flat_range(shape)
        run = last - first == part.numel and out.flags.c_contiguous
        into = out.reshape(-1).view(np.uint8) if run else None
        begin, end = stored.offset + 4 * first, stored.offset + 4 * last
        for index in range(begin // BLOCK, -(-end // BLOCK)):
            lo, hi = max(begin, index * BLOCK), min(end, (index + 1) * BLOCK)
            if into is not None:
                if not (index - begin // BLOCK) % AHEAD:
                    self._blocks.expect(stored.file, file, lo, min(end, lo + 2 * AHEAD * BLOCK))
                if hi - lo == BLOCK:  # a whole block is read straight into its place
                    self._blocks.read(stored.file, file, index, into[lo - begin : hi - begin])
                else:
                    block_bytes = self._blocks.block(stored.file, file, index)
                    into[lo - begin : hi - begin] = block_bytes[lo - index * BLOCK : hi - index * BLOCK]
                continue
            block: np.ndarray | None = None
            at = lo - index * BLOCK
            for run_box in Box.of_flat_range(shape, (lo - stored.offset) // 4, (hi - stored.offset) // 4):
                both = run_box.intersect(part)
                if both is not None:
                    if block is None:
                        block = self._blocks.block(stored.file, file, index)
                    source = block[at : at + 4 * run_box.numel].view(np.float32).reshape(run_box.shape)
                    out[both.relative_to(part).slices()] = source[both.relative_to(run_box).slices()]
                at += 4 * run_box.numel

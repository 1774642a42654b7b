"""Writes boxes of fp32 tensors into safetensors files, one file per rank and kind."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from growth.box import Box
from pretrain.checkpoint.blocks import BLOCK, BlockWriter
from pretrain.checkpoint.manifest import STORED, FileRecord
from pretrain.checkpoint.places import MEMORY

Source = torch.Tensor | Callable[[Box], torch.Tensor]
"""The content of a box: a tensor of its shape, strided or not, on any device; or a function that gives any part of the
box, asked for in row-major order and in coordinates of the whole tensor, so that nothing large is ever in memory."""

PIECE = 4 << 20  # bytes that a function is asked for at a time


def entry_name(name: str, box: Box, shape: Sequence[int]) -> str:
    """The name of a box in a file: the tensor's own when it is the whole tensor, else `name[0:4,16:32]`."""
    if box == Box.whole(shape):
        return name
    return f"{name}[{','.join(f'{a}:{b}' for a, b in zip(box.start, box.stop, strict=True))}]"


class Writer:
    """Writes the files of one rank to a folder that exists, in the memory of a block and a few pieces."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank

    def write(
        self,
        kind: str,
        entries: Iterable[tuple[str, Box, Source]],
        shapes: Mapping[str, Sequence[int]],
        progress: Callable[[int], None] | None = None,
    ) -> FileRecord:
        """Writes `weight-00003.safetensors` (kind, rank) and waits until the disk has it.

        entries: (tensor, box, content); shapes: the full shapes. progress is told of bytes as they are written.
        Raises OSError as the filesystem does and ValueError for content of another shape or dtype.
        """
        if kind not in (*STORED, MEMORY):
            raise ValueError(f"kind {kind!r} is none of {', '.join((*STORED, MEMORY))}")
        entries = [e for e in entries if e[1].numel]
        header, offsets, _ = header_of([(name, box) for name, box, _ in entries], shapes)
        name = file_name(kind, self.rank)
        out = BlockWriter(self.folder / name)
        try:
            out.write(memoryview(header))
            with _Behind() as behind:
                for entry in entries:
                    _write_box(out, behind, *entry, progress or (lambda n: None))
            file = out.finish()
        finally:
            out.close()
        boxes = tuple((n, box, offset) for (n, box, _), offset in zip(entries, offsets, strict=True))
        return FileRecord(kind, name, file, boxes)


def file_name(kind: str, rank: int) -> str:
    """The name of the file of a kind that a rank writes."""
    return f"{kind}-{rank:05}.safetensors"


def header_of(
    boxes: Sequence[tuple[str, Box]], shapes: Mapping[str, Sequence[int]]
) -> tuple[bytes, tuple[int, ...], int]:
    """What stands before the data of these boxes, the byte offset of each box in the file, and the file's size."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = [], 0
    for name, box in boxes:
        key = entry_name(name, box, shapes[name])
        if key in header:
            raise ValueError(f"{key} is written twice")
        offsets.append(end)
        end += 4 * box.numel
        header[key] = {"dtype": "F32", "shape": box.shape, "data_offsets": [offsets[-1], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, tuple(start + offset for offset in offsets), start + end


class _Behind:
    """Does work in order in a thread, so that a piece is hashed and written while the next one is worked out."""

    WAITING = 4

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "_Behind":
        return self

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Queues work, when there is room for it; raises what earlier work raised."""
        self._thread = self._thread or ThreadPoolExecutor(1, "write")
        while len(self._waiting) >= self.WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(work, *arguments))

    def wait(self) -> None:
        """Waits until all work is done; raises what it raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._thread:
                self._thread.shutdown(cancel_futures=True)


def _write_box(
    out: BlockWriter, behind: _Behind, name: str, box: Box, source: Source, progress: Callable[[int], None]
) -> None:
    if isinstance(source, torch.Tensor):
        behind.wait()
        _write_tensor(out, name, box, source, progress)
        return
    for part in box.parts(PIECE):
        behind.do(_write_tensor, out, name, part, source(part), progress)


def _write_tensor(out: BlockWriter, name: str, box: Box, tensor: torch.Tensor, progress: Callable[[int], None]) -> None:
    check_content(name, box, tensor)
    tensor = tensor.detach()
    numel = box.numel
    flat = tensor.view(-1) if tensor.is_contiguous() else None
    at = 0
    while at < numel:
        if flat is not None and tensor.device.type == "cpu":
            n = min(numel - at, 16 * BLOCK)
            out.write(flat[at : at + n].numpy().data.cast("B"))
        else:
            free = out.free()
            n = min(numel - at, len(free) // 4)
            target = free[: 4 * n].view(torch.float32)
            if flat is not None:
                target.copy_(flat[at : at + n])
            else:
                _copy_flat(tensor, at, target)
            out.advance(4 * n)
        at += n
        progress(4 * n)


def check_content(name: str, box: Box, tensor: torch.Tensor) -> None:
    """Raises ValueError unless the tensor is fp32 and has the box's shape."""
    if tuple(tensor.shape) != box.shape or tensor.dtype != torch.float32:
        content = f"{tensor.dtype} of {tuple(tensor.shape)}"
        raise ValueError(f"{name} {box.start}:{box.stop} takes torch.float32 of {box.shape}, not {content}")


def _copy_flat(tensor: torch.Tensor, start: int, target: torch.Tensor) -> None:
    """Fills `target` with the elements of a strided tensor from flat index `start` on, in row-major order."""
    at = 0
    for part in Box.of_flat_range(tensor.shape, start, start + len(target)):
        target[at : at + part.numel].view(part.shape).copy_(tensor[part.slices()])
        at += part.numel

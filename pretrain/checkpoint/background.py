"""What lets training go on while a checkpoint is written: a copy of the state, and a thread."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from growth.box import Box
from pretrain.checkpoint.manifest import FileRecord
from pretrain.checkpoint.writer import Writer, check_content
from pretrain.runtime.comm import in_words

Tensors = Mapping[str, Sequence[tuple[str, Box, torch.Tensor]]]


class Snapshot:
    """Host memory for a copy of a rank's boxes: one flat buffer a kind, reused from save to save, pinned for CUDA."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, tensors: Tensors) -> Tensors:
        """Copies the boxes; the copy is complete when this returns, and valid until the next call."""
        copy: dict[str, list[tuple[str, Box, torch.Tensor]]] = {}
        cuda = any(tensor.is_cuda for boxes in tensors.values() for _, _, tensor in boxes)
        for kind, boxes in tensors.items():
            numel = sum(box.numel for _, box, _ in boxes)
            memory = self._memory.get(kind)
            if memory is None or memory.numel() != numel:
                memory = self._memory[kind] = torch.empty(numel, dtype=torch.float32, pin_memory=cuda)
            at = 0
            copy[kind] = []
            for name, box, tensor in boxes:
                check_content(name, box, tensor)
                place = memory[at : at + box.numel].view(box.shape)
                place.copy_(tensor.detach(), non_blocking=True)
                copy[kind].append((name, box, place))
                at += box.numel
        if cuda:
            torch.cuda.synchronize()
        return copy


class Write:
    """The files of one rank for one save, written at once or in a thread.

    Attributes, when `done`: records of the files, or failure (what went wrong, in words) and cause; seconds it took.
    """

    def __init__(self, partial: Path, rank: int, shapes: Mapping[str, Sequence[int]]) -> None:
        self.records: list[FileRecord] = []
        self.failure = ""
        self.cause: Exception | None = None
        self.seconds = 0.0
        self._writer = Writer(partial, rank)
        self._shapes = shapes
        self._thread: threading.Thread | None = None

    def run(self, tensors: Tensors) -> None:
        """Writes the files in the calling thread."""
        begun = time.monotonic()
        try:
            self.records = [self._writer.write(kind, boxes, self._shapes) for kind, boxes in tensors.items() if boxes]
        except Exception as error:
            self._fail(error)
        self.seconds = time.monotonic() - begun

    def start(self, tensors: Tensors, snapshot: Snapshot) -> None:
        """Copies now and writes in a thread (copies, hashes, writes and fsync let training run meanwhile)."""
        try:
            copy = snapshot.take(tensors)
        except Exception as error:
            self._fail(error)
            return
        self._thread = threading.Thread(target=self.run, args=(copy,), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether writing is over, successfully or not."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Waits until writing is over."""
        if self._thread:
            self._thread.join()

    def _fail(self, error: Exception) -> None:
        """Records an error: it is raised on every rank, when all are done."""
        self.failure, self.cause = in_words(error, self._writer.folder), error

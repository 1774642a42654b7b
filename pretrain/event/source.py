"""The model that is to grow, as it lies in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from growth import Architecture
from pretrain.checkpoint import CorruptCheckpoint, Reader, restore
from pretrain.checkpoint.find import Restored

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The checkpoints in `root` of a model of this architecture, if need be of one step, or one of them alone.

    Others may lie beside them: newer ones that a resume could not read, and those from before a parent's last patch.
    """

    root: Path
    arch: Architecture
    step: int | None = None
    path: Path | None = None

    def restored(self, load: Callable[[Reader], T]) -> Restored[T]:
        """As `restore`, of nothing but these (collective)."""

        def checked(reader: Reader) -> T:
            manifest = reader.manifest
            if Architecture.from_json(manifest.architecture) != self.arch or self.step not in (None, manifest.step):
                raise CorruptCheckpoint(f"{reader.path}: not the model that is to grow, but one before or after it")
            if self.path not in (None, reader.path):
                raise CorruptCheckpoint(f"{reader.path}: the growth event has begun with {self.path}")
            return load(reader)

        return restore(self.root, checked)

"""Finds, verifies and loads checkpoints: the newest one that verifies, and why others were skipped."""

import logging
import re
from bisect import bisect, bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch.distributed import ProcessGroup
from tqdm import tqdm

from pretrain.checkpoint.blocks import BLOCK, BlockReader
from pretrain.checkpoint.manifest import CorruptCheckpoint, Manifest
from pretrain.checkpoint.reader import Reader
from pretrain.errors import UserError
from pretrain.runtime.comm import Comm

log = logging.getLogger(__name__)

T = TypeVar("T")

_STEP = re.compile(r"step-(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return root / f"step-{step:08}"


def step_of(path: Path) -> int | None:
    """The step that a folder's name says, None for another name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def steps(root: Path) -> list[Path]:
    """The folders of checkpoints in `root`, good or not, newest first."""
    folders = [p for p in root.iterdir() if step_of(p) is not None] if root.is_dir() else []
    return sorted(folders, key=lambda p: step_of(p) or 0, reverse=True)


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies, and its manifest (both None if there is none).

    skipped: newer checkpoints that do not verify, as (path, reason).
    """

    path: Path | None
    manifest: Manifest | None
    skipped: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Restored(Found, Generic[T]):
    """The checkpoint that was loaded, and in `loaded` what the loading function returned."""

    loaded: T | None = None

    def warn(self) -> None:
        """Logs which checkpoints were skipped, and whether the loaded one has no moments."""
        for path, reason in self.skipped:
            log.warning("skipped %s: %s", path, reason)
        if self.manifest and not self.manifest.has("exp_avg"):
            log.warning("%s has no Adam moments: they start at zero", self.path)


def check(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there with their sizes; reads no tensor.

    Raises CorruptCheckpoint naming the file, UserError for a newer format.
    """
    manifest = Manifest.load(path)
    step = step_of(path)
    if step is not None and step != manifest.step:
        raise CorruptCheckpoint(f"{path}: the manifest is of step {manifest.step}, so of another checkpoint")
    for name, file in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise CorruptCheckpoint(f"{path / name}: {error.strerror}") from error
        if size != file.size:
            raise CorruptCheckpoint(f"{path / name}: {size} bytes, and should have {file.size}")
    return manifest


def is_good(path: Path) -> bool:
    """Whether `check` has nothing against a checkpoint."""
    try:
        check(path)
    except UserError:
        return False
    return True


def find(root: Path, skip: Mapping[Path, str] | None = None) -> Found:
    """The newest checkpoint in `root` that passes `check`; `skip` names folders that are known to be bad, and why.

    Blocks are verified when they are read (see `restore`) or by `verify_all`. Raises UserError for a checkpoint of a
    newer format: going back behind it would lose it.
    """
    skipped: list[tuple[Path, str]] = []
    for path in steps(root):
        if skip and path in skip:
            skipped.append((path, skip[path]))
            continue
        try:
            return Found(path, check(path), tuple(skipped))
        except CorruptCheckpoint as error:
            skipped.append((path, str(error)))
    return Found(None, None, tuple(skipped))


def verify_all(path: Path, names: Iterable[str] | None = None, progress: bool = False) -> list[str]:
    """Reads every block of a checkpoint (or of the files in `names`) and says what is wrong: file, block and tensors.

    An empty list means that all is as written. Raises as `Manifest.load` does.
    """
    manifest = Manifest.load(path)
    names = list(manifest.files if names is None else names)
    reader = BlockReader(path)
    memory = np.empty(BLOCK, dtype=np.uint8)
    problems = []
    contents = _contents(manifest)
    total = sum(manifest.files[n].size for n in names)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"verify {path.name}", disable=not progress) as bar:
        for name in names:
            file = manifest.files[name]
            for index in range(len(file.blocks)):
                size = min(BLOCK, file.size - index * BLOCK)
                try:
                    reader.read(name, file, index, memory[:size])
                except CorruptCheckpoint as error:
                    problems.append(f"{error}; it holds {_content(contents[name], index)}")
                    if not reader.is_open(name):  # the file is missing or truncated: one message is enough
                        break
                bar.update(size)
    reader.close()
    return problems


def _contents(manifest: Manifest) -> dict[str, list[tuple[int, int, str]]]:
    """For each file its boxes in order, as (first byte, byte after the last, kind and tensor)."""
    contents: dict[str, list[tuple[int, int, str]]] = {name: [] for name in manifest.files}
    for name, entry in manifest.tensors.items():
        for kind, boxes in entry.boxes.items():
            for b in boxes:
                contents[b.file].append((b.offset, b.offset + 4 * b.box.numel, f"{kind} of {name}"))
    return {file: sorted(parts) for file, parts in contents.items()}


def _content(parts: list[tuple[int, int, str]], block: int) -> str:
    """In words, which tensors a block of a file holds."""
    first = bisect(parts, block * BLOCK, key=lambda part: part[1])
    last = bisect_left(parts, (block + 1) * BLOCK, key=lambda part: part[0])
    inside = [what for _, _, what in parts[first:last]]
    more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
    return (", ".join(inside[:3]) + more) or "the header"


def restore(root: Path, load: Callable[[Reader], T], group: ProcessGroup | None = None) -> Restored[T]:
    """Loads the newest checkpoint that verifies, on all ranks (collective).

    `load` reads what its rank needs and must overwrite all of it, because it is called again with an older checkpoint
    when a block turns out to be corrupt on any rank. The result has path None when `root` holds no checkpoint at all.

    Raises UserError when there are checkpoints and none can be loaded, and whatever else `load` raises on any rank.
    """
    comm = Comm(group)
    bad: dict[Path, str] = {}
    while True:
        newest = comm.on_first(lambda: find(root, bad))
        if newest.path is None:
            if newest.skipped:
                lines = "\n".join(f"  {path.name}: {reason}" for path, reason in newest.skipped)
                raise UserError(
                    f"{root}: none of its checkpoints can be loaded:\n{lines}\n"
                    "Put one right, or move them away to start this stage from its beginning."
                )
            return Restored(None, None, newest.skipped)
        corrupt, failed, loaded = "", None, None
        try:
            with Reader(newest.path) as reader:
                loaded = load(reader)
        except CorruptCheckpoint as problem:
            corrupt = str(problem)
        except Exception as problem:  # raised below, when the other ranks know
            failed = problem
        outcomes = comm.from_first(comm.to_first((corrupt, str(failed) if failed else "")))
        if failed:
            raise failed
        failures = [f"rank {rank}: {message}" for rank, (_, message) in enumerate(outcomes) if message]
        if failures:
            raise UserError("; ".join(failures))
        reasons = [reason for reason, _ in outcomes if reason]
        if not reasons:
            return Restored(newest.path, newest.manifest, newest.skipped, loaded)
        bad[newest.path] = reasons[0]

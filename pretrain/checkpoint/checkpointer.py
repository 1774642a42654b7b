"""Saves the state of a training run: all ranks write at once, rank 0 commits."""

import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

from growth.box import Box
from pretrain.checkpoint.atomic import Lock, fsync_folder
from pretrain.checkpoint.comm import Comm
from pretrain.checkpoint.find import check, step_folder, step_of, steps, verify_all
from pretrain.checkpoint.manifest import MANIFEST, CorruptCheckpoint, FileRecord, Manifest, ManifestFields, plain
from pretrain.checkpoint.writer import Writer
from pretrain.errors import UserError

Tensors = Mapping[str, Sequence[tuple[str, Box, torch.Tensor]]]


@dataclass(frozen=True)
class SaveReport:
    """A save that is committed, equal on all ranks but for the times.

    kept: the step was there already, with the same state and intact, so nothing was written. bytes: of all tensor
    files. write_seconds: until this rank's files were on the disk. stall_seconds: for how long training stood still.
    removed: checkpoints that retention removed.
    """

    path: Path
    step: int
    hash: str
    kept: bool
    bytes: int
    write_seconds: float
    stall_seconds: float
    removed: tuple[Path, ...] = ()


class Checkpointer:
    """The checkpoints of one stage of a run, a folder that one run at a time may write. Making one is collective.

    keep_last: how many of the newest checkpoints retention keeps (at least 1, so a stage's last one stays for ever).
    keep_every: also keep the steps that this divides; 0 for none. Raises UserError on all ranks when the folder cannot
    be written or another run writes it.
    """

    def __init__(self, root: Path, group: ProcessGroup | None = None, keep_last: int = 2, keep_every: int = 0) -> None:
        if keep_last < 1 or keep_every < 0:
            raise UserError(f"keep_last must be at least 1 and keep_every at least 0, not {keep_last} and {keep_every}")
        self.root = Path(root)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._comm = Comm(group)
        self._lock: Lock | None = None
        failure = ""
        if self._comm.rank == 0:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock = Lock(self.root / ".lock")
            except UserError as error:
                failure = str(error)
            except OSError as error:
                failure = f"{self.root}: cannot be written ({error.strerror}); checkpoints need a folder to go to"
        failure = self._comm.from_first(failure)
        if failure:
            raise UserError(failure)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another run write here. Not collective."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def save(self, step: int, tensors: Tensors, fields: ManifestFields) -> SaveReport:
        """Writes this rank's boxes and waits until the whole checkpoint is committed (collective).

        tensors: per kind (tensor, box, fp32 view of the box's shape); over all ranks the boxes of a kind tile every
        tensor. fields: rank 0's are used.

        A step that is there already is kept when it is intact and of the same state; moved aside, to a hidden folder,
        when it is corrupt; and an error otherwise. Raises UserError on every rank when any of them fails, naming the
        rank and the cause; the checkpoints before stay as they were.
        """
        begun = time.monotonic()
        path = step_folder(self.root, step)
        existing = self._existing(path, fields)
        if existing:
            return SaveReport(path, step, existing.hash, True, existing.size, 0.0, time.monotonic() - begun)
        partial = self._first(lambda: self._begin(path))
        records, failure, cause = [], "", None
        try:
            writer = Writer(partial, self._comm.rank)
            records = [writer.write(kind, boxes, fields.shapes) for kind, boxes in tensors.items() if boxes]
        except Exception as error:  # told to the other ranks, then raised
            failure, cause = _in_words(error, partial), error
        written = time.monotonic() - begun
        told = self._comm.to_first((records, failure))
        try:
            manifest, removed = self._first(lambda: self._commit(step, path, partial, fields, told))
        except UserError as error:
            raise error from cause
        return SaveReport(
            path, step, manifest.hash, False, manifest.size, written, time.monotonic() - begun, tuple(removed)
        )

    def _first(self, work: Any) -> Any:
        """What `work` returns on rank 0, on every rank; its failure is a UserError on every rank."""
        result, failure, cause = None, "", None
        if self._comm.rank == 0:
            try:
                result = work()
            except Exception as error:  # told to the other ranks, then raised
                failure, cause = _in_words(error, self.root), error
        result, failure = self._comm.from_first((result, failure))
        if failure:
            raise UserError(failure) from cause
        return result

    def _existing(self, path: Path, fields: ManifestFields) -> Manifest | None:
        """The intact checkpoint of the same state at `path`; a corrupt one is moved aside (collective)."""

        def look() -> tuple[Manifest | None, str]:
            try:
                return (check(path) if path.exists() else None), ""
            except CorruptCheckpoint as error:
                return None, str(error)

        manifest, problem = self._first(look)
        if manifest:
            names = sorted(manifest.files)[self._comm.rank :: self._comm.world]
            told = self._comm.to_first(verify_all(path, names))
            problem = self._first(lambda: "; ".join(p for problems in told for p in problems))
        if problem:
            self._first(lambda: _move_aside(path, problem))
            return None
        if manifest and self._first(lambda: _identity(fields) != _identity(manifest)):
            raise UserError(
                f"{path} is there already, intact and of another state than this run's step {manifest.step}: "
                "move it away if this run is to go on from an earlier checkpoint"
            )
        return manifest

    def _begin(self, path: Path) -> Path:
        """Removes what killed saves and removals left, and makes the folder to write into."""
        for left in [*self.root.glob(".step-*.partial"), *self.root.glob(".step-*.removed")]:
            shutil.rmtree(left)
        partial = self.root / f".{path.name}.partial"
        partial.mkdir()
        return partial

    def _commit(
        self,
        step: int,
        path: Path,
        partial: Path,
        fields: ManifestFields,
        told: list[tuple[list[FileRecord], str]],
    ) -> tuple[Manifest, list[Path]]:
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(told) if failure]
        try:
            if failures:
                raise UserError("; ".join(failures))
            manifest = Manifest.build(step, fields, [record for records, _ in told for record in records])
            commit(manifest, partial, path)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)  # room for the next try
            last = next((p for p in steps(self.root)), None)
            where = f"the last checkpoint is {last}" if last else "there is no earlier checkpoint"
            raise UserError(f"step {step} was not saved ({where}). {_in_words(error, partial)}") from error
        return manifest, self._retain(step)

    def _retain(self, step: int) -> list[Path]:
        """Removes old checkpoints. Later and broken ones are no business of this save and stay."""
        removed = []
        older = [p for p in steps(self.root) if (step_of(p) or 0) < step and _is_good(p)]
        for path in older[self.keep_last - 1 :]:
            if self.keep_every and (step_of(path) or 0) % self.keep_every == 0:
                continue
            try:
                # Renamed first: a removal that is killed leaves nothing that looks like a checkpoint.
                shutil.rmtree(path.rename(self.root / f".{path.name}.removed"))
            except OSError as error:
                warnings.warn(f"{path}: could not be removed ({error.strerror})", stacklevel=2)
                continue
            removed.append(path)
        return removed


def commit(manifest: Manifest, partial: Path, path: Path) -> None:
    """Makes the files in `partial` the checkpoint `path`, at once and durably.

    Raises UserError when a file is not to be seen from here, OSError as the filesystem does.
    """
    for name, file in manifest.files.items():
        try:
            size = (partial / name).stat().st_size
        except FileNotFoundError as error:
            raise UserError(
                f"{partial / name} was written by another rank and cannot be seen here: "
                "checkpoints need a folder that all nodes share"
            ) from error
        if size != file.size:
            raise UserError(f"{partial / name} has {size} bytes, and {file.size} were written")
    with open(partial / MANIFEST, "xb") as out:
        out.write(manifest.to_bytes())
        out.flush()
        os.fsync(out.fileno())
    fsync_folder(partial)
    partial.rename(path)
    fsync_folder(path.parent)


def _identity(state: ManifestFields | Manifest) -> dict[str, Any]:
    """What two saves of one step of one run have in common, whatever the layout and the time it took."""
    return {
        "stage": state.stage,
        "architecture": plain(state.architecture),
        "cursor": plain(state.cursor),
        "generations": plain(state.generations),
        "tokens": state.progress.get("tokens"),
        "parent": state.parent["hash"] if state.parent else None,
    }


def _is_good(path: Path) -> bool:
    try:
        check(path)
    except UserError:
        return False
    return True


def _move_aside(path: Path, problem: str) -> None:
    number = 1
    while (aside := path.with_name(f".{path.name}.corrupt-{number}")).exists():
        number += 1
    path.rename(aside)
    warnings.warn(f"{path.name} is corrupt ({problem}); it is kept as {aside.name}", stacklevel=2)


def _in_words(error: Exception, where: Path) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or where}: {error.strerror or error}"
    return f"{type(error).__name__}: {error}"

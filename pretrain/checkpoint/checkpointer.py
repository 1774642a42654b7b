"""Saves the state of a training run: all ranks write at once, rank 0 commits."""

import itertools
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from pretrain.checkpoint.background import Snapshot, Tensors, Write
from pretrain.checkpoint.commit import LOCK, begin, commit, move_aside, retain
from pretrain.checkpoint.find import check, step_folder, steps, verify_all
from pretrain.checkpoint.manifest import CorruptCheckpoint, Description, FileRecord, Manifest, ManifestFields, plain
from pretrain.errors import UserError
from pretrain.runtime.comm import Comm, in_words
from pretrain.runtime.files import Lock, make_folder


@dataclass(frozen=True)
class SaveReport:
    """A save that is committed; equal on all ranks except for the times.

    kept: the step was there already, with the same state and intact, so nothing was written. bytes: the size of
    all tensor files. write_seconds: until this rank's files were on the disk. stall_seconds: for how long training
    stood still. removed: checkpoints that retention removed.
    """

    path: Path
    step: int
    hash: str
    kept: bool
    bytes: int
    write_seconds: float
    stall_seconds: float
    removed: tuple[Path, ...] = ()


@dataclass
class _Pending:
    """A save that is not committed yet. stalled: seconds of training lost to it so far."""

    step: int
    path: Path
    partial: Path
    fields: ManifestFields
    write: Write
    stalled: float
    spare: Callable[[], Collection[int]]


class Checkpointer:
    """The checkpoints of one stage of a run, a folder that one run at a time may write. Making one is collective.

    keep_last: how many of the newest checkpoints retention keeps (at least 1, so a stage's last one stays for ever).
    keep_every: also keep the steps that this divides; 0 for none. asynchronous: `save` returns when the boxes are
    copied to host memory; call `poll` after every step, and `wait` before the end. Raises UserError on all ranks when
    the folder cannot be written or another run writes it.
    """

    def __init__(
        self,
        root: Path,
        group: ProcessGroup | None = None,
        keep_last: int = 2,
        keep_every: int = 0,
        asynchronous: bool = False,
    ) -> None:
        if keep_last < 1 or keep_every < 0:
            raise UserError(f"keep_last must be at least 1 and keep_every at least 0, not {keep_last} and {keep_every}")
        self.root = Path(root)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._comm = Comm(group)
        self._snapshot = Snapshot() if asynchronous else None
        self._pending: _Pending | None = None
        self._reports: list[SaveReport] = []
        self._lock: Lock | None = None
        self._comm.on_first(self._open)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another run write here. Not collective; a save in the background that nobody waited for is dropped."""
        if self._pending:
            self._pending.write.join()
            self._pending = None
        if self._lock:
            self._lock.release()
            self._lock = None

    def save(
        self, step: int, tensors: Tensors, fields: ManifestFields, spare: Callable[[], Collection[int]] = tuple
    ) -> SaveReport | None:
        """Saves this rank's boxes (collective); None when the save goes on in the background.

        tensors: per kind (tensor, box, fp32 view of the box's shape); over all ranks the boxes of a kind tile every
        tensor. fields: of rank 0; of other ranks only the shapes count. spare: gives, on rank 0 and when this save is
        committed, the steps whose checkpoints retention does not remove. A save still in the background is waited for;
        `poll` reports it.

        A step that is there already is kept when it is intact and of the same state; moved aside, to a hidden folder,
        when it is corrupt; and an error otherwise. Raises UserError on every rank when any of them fails, naming the
        rank and the cause; the checkpoints before stay as they were.
        """
        self._wait()
        begun = time.monotonic()
        path = step_folder(self.root, step)
        existing = self._existing(path, fields)
        if existing:
            return SaveReport(path, step, existing.hash, True, existing.size, 0.0, time.monotonic() - begun)

        frozen = fields

        def prepare() -> Path:
            nonlocal frozen
            frozen = fields.frozen()  # training goes on and may change them
            return begin(path)

        partial = self._comm.on_first(prepare)
        write = Write(partial, self._comm.rank, dict(fields.shapes))
        if self._snapshot:
            write.start(tensors, self._snapshot)
        else:
            write.run(tensors)
        self._pending = _Pending(step, path, partial, frozen, write, time.monotonic() - begun, spare)
        return None if self._snapshot else self._finish(self._pending)

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing the save in the background; not collective."""
        return self._pending is not None and not self._pending.write.done

    def poll(self, written: bool) -> SaveReport | None:
        """Commits the save in the background, if there is one and all ranks have `written` it: have said since it was
        begun that they are not `writing`. To be called after each step, with the same value on every rank (collective).

        The report of a save that is committed, once. Raises as `save` does when the save failed on any rank.
        """
        if self._pending and written:
            self._reports.append(self._finish(self._pending))
        return self._reports.pop(0) if self._reports else None

    def wait(self) -> SaveReport | None:
        """Like `poll`, but waits until the save in the background is over."""
        self._wait()
        return self._reports.pop(0) if self._reports else None

    def _wait(self) -> None:
        if self._pending:
            begun = time.monotonic()
            self._pending.write.join()
            self._pending.stalled += time.monotonic() - begun
            self._reports.append(self._finish(self._pending))

    def _finish(self, pending: _Pending) -> SaveReport:
        """Commits what all ranks have written, or says on all ranks which of them failed (collective)."""
        begun = time.monotonic()
        self._pending = None
        write = pending.write
        writes = self._comm.to_first((write.records, write.failure))
        try:
            manifest_hash, size, removed = self._comm.on_first(lambda: self._commit(pending, writes))
        except UserError as error:
            raise error from error.__cause__ or write.cause
        stalled = pending.stalled + time.monotonic() - begun
        return SaveReport(pending.path, pending.step, manifest_hash, False, size, write.seconds, stalled, removed)

    def _open(self) -> None:
        try:
            make_folder(self.root)
            self._lock = Lock(self.root / LOCK)
        except OSError as error:
            raise UserError(f"{self.root}: checkpoints cannot be written here ({error.strerror})") from error

    def _existing(self, path: Path, fields: ManifestFields) -> Manifest | None:
        """The intact checkpoint of the same state at `path`; a corrupt one is moved aside (collective)."""

        def look() -> tuple[Manifest | None, str]:
            try:
                return (check(path) if path.exists() else None), ""
            except CorruptCheckpoint as error:
                return None, str(error)

        manifest, problem = self._comm.on_first(look)
        if manifest:
            names = sorted(manifest.files)[self._comm.rank :: self._comm.world]
            try:
                problems = verify_all(path, names)
            except UserError as error:
                problems = [str(error)]
            problems_by_rank = self._comm.to_first(problems)
            problem = self._comm.on_first(lambda: "; ".join(itertools.chain(*problems_by_rank)))
        if problem:
            self._comm.on_first(lambda: move_aside(path, problem))
            return None
        if manifest and self._comm.on_first(lambda: _identity(fields) != _identity(manifest)):
            raise UserError(
                f"{path} is there already, intact and of another state than this run's step {manifest.step}: "
                "move it away if this run is to go on from an earlier checkpoint"
            )
        return manifest

    def _commit(
        self, pending: _Pending, writes: list[tuple[list[FileRecord], str]]
    ) -> tuple[str, int, tuple[Path, ...]]:
        """Rank 0's part: the manifest's hash, the checkpoint's bytes, what retention removed."""
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(writes) if failure]
        try:
            if failures:
                raise UserError("; ".join(failures))
            records = [record for records, _ in writes for record in records]
            manifest = Manifest.build(pending.step, pending.fields, records)
            commit(manifest, pending.partial, pending.path)
        except Exception as error:
            shutil.rmtree(pending.partial, ignore_errors=True)  # the disk may be full: the next try needs room
            last = next(iter(steps(self.root)), None)
            where = f"the last checkpoint is {last}" if last else "there is no earlier checkpoint"
            message = f"step {pending.step} was not saved ({where}). {in_words(error, pending.partial)}"
            raise UserError(message) from error
        removed = retain(self.root, pending.step, self.keep_last, self.keep_every, pending.spare())
        return manifest.hash, manifest.size, tuple(removed)


def _identity(description: Description) -> dict[str, Any]:
    """What two saves of one step of one run have in common, whatever the layout and the time it took."""
    return {
        "stage": description.stage,
        "architecture": plain(description.architecture),
        "cursor": plain(description.cursor),
        "generations": plain(description.generations),
        "tokens": description.progress.get("tokens"),
        "parent": description.parent["hash"] if description.parent else None,
    }

"""Writes a whole checkpoint outside of training, piece by piece: offline growth and imports."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from growth.box import Box
from pretrain.checkpoint.blocks import BLOCK, BlockReader
from pretrain.checkpoint.commit import LOCK, commit, partial_of, progress_of
from pretrain.checkpoint.find import check, step_of
from pretrain.checkpoint.manifest import CorruptCheckpoint, FileRecord, Manifest, ManifestFields, canonical
from pretrain.checkpoint.places import StoredFile
from pretrain.checkpoint.writer import PIECE, Writer, file_name, header_of
from pretrain.errors import UserError
from pretrain.runtime.comm import in_words
from pretrain.runtime.files import Lock, make_folder, write_file
from pretrain.runtime.forks import spread
from pretrain.runtime.malloc import given_back

SHARD = 256 << 20  # bytes: enough files for many processes, and little work is lost by a stop
IDENTITY = "identity.json"

Read = Callable[[str, str, Box], torch.Tensor]
"""(kind, tensor, box) -> the fp32 content of the box."""


def write_checkpoint(
    path: Path,
    step: int,
    kinds: list[str],
    read: Read,
    fields: ManifestFields,
    identity: Mapping[str, Any],
    processes: int = 1,
    shard_bytes: int = SHARD,
    progress: bool = False,
) -> Manifest:
    """Writes the checkpoint `path` with whole tensors; the files are the same, whatever the number of processes.

    `read` is asked for every tensor of `fields.shapes` in row-major pieces of at most 4 MiB, in order, so the memory
    needed does not depend on the model. A file holds up to about `shard_bytes`. Stopped and called again with the same
    `identity` (JSON that says what `read` reads: its source's hash and the plan, say), it goes on after the files that
    were finished. With several processes (forked) each writes whole files. `progress` shows a bar with bytes/s and the
    time left.

    Raises UserError when `path` exists, somebody else writes it or in its folder of checkpoints, or anything fails.
    """
    if step_of(path) not in (None, step):
        raise ValueError(f"{path.name} is no name for step {step}")
    fields.frozen()
    about = canonical({"identity": identity, "shapes": fields.shapes, "kinds": kinds, "shard_bytes": shard_bytes})
    files = _files(kinds, fields.shapes, shard_bytes)
    if path.exists():
        return _finished(path, about)
    with _alone(path):
        if path.exists():  # another process was first
            return _finished(path, about)
        try:
            _begin(path, about)
            with given_back(PIECE // 2):
                return _write(path, step, files, read, fields, processes, progress)
        except Exception as error:
            words = in_words(error, partial_of(path))
            raise UserError(f"{path} is not complete. {words}. Run it again to go on where it stopped.") from error


@dataclass(frozen=True)
class _File:
    """A file to write: its tensors, whole and in order."""

    kind: str
    index: int
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        return file_name(self.kind, self.index)

    @property
    def size(self) -> int:
        """Bytes that its tensors take."""
        return sum(4 * prod(shape) for shape in self.tensors.values())


def _files(kinds: list[str], shapes: Mapping[str, Any], shard_bytes: int) -> list[_File]:
    """Distributes the tensors in order, with a new file where the next one would not fit."""
    groups: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for name, shape in shapes.items():
        size = 4 * prod(shape)
        if not groups or size > room:
            groups.append({})
            room = shard_bytes
        groups[-1][name] = tuple(shape)
        room -= size
    return [_File(kind, index, tensors) for kind in kinds for index, tensors in enumerate(groups)]


def _write(
    path: Path,
    step: int,
    files: list[_File],
    read: Read,
    fields: ManifestFields,
    processes: int,
    progress: bool,
) -> Manifest:
    work, partial = progress_of(path), partial_of(path)
    records: dict[str, FileRecord] = {}
    with tqdm(total=sum(f.size for f in files), unit="B", unit_scale=True, desc=path.name, disable=not progress) as bar:
        missing = []
        for file in files:
            record = _taken_over(work, partial, file)
            if record:
                records[file.name] = record
                bar.update(file.size)
            else:
                (partial / file.name).unlink(missing_ok=True)
                missing.append(file)

        def write(number: int, count_bytes: Callable[[int], Any]) -> FileRecord:
            file = missing[number]

            def source(name: str) -> Callable[[Box], torch.Tensor]:
                return lambda box: read(file.kind, name, box)

            entries = [(name, Box.whole(shape), source(name)) for name, shape in file.tensors.items()]
            try:
                return Writer(partial, file.index).write(file.kind, entries, file.tensors, count_bytes)
            except OSError as error:
                raise UserError(in_words(error, partial / file.name)) from error

        def finished(number: int, record: FileRecord) -> None:
            write_file(work / f"{record.name}.json", canonical({"blocks": record.file.blocks}))
            records[record.name] = record

        if processes > 1 and len(missing) > 1:
            spread(write, len(missing), processes, finished, bar.update)
        else:
            for number in range(len(missing)):
                finished(number, write(number, bar.update))
    manifest = Manifest.build(step, fields, [records[file.name] for file in files])
    commit(manifest, partial, path)
    _tidy(work)
    return manifest


def _alone(path: Path) -> Lock:
    """Locks the folder of checkpoints that `path` is in; elsewhere, this name alone."""
    folder, name = (path.parent, LOCK) if step_of(path) is not None else (progress_of(path), "lock")
    try:
        make_folder(folder)
        return Lock(folder / name)
    except OSError as error:
        raise UserError(f"{path}: a checkpoint cannot be written here ({error.strerror})") from error


def _begin(path: Path, about: bytes) -> None:
    """Makes the folders to write into, and removes other work that was left unfinished under this name."""
    work, partial = progress_of(path), partial_of(path)
    make_folder(work)
    if not _is_of(work, about):
        shutil.rmtree(partial, ignore_errors=True)
        for record in work.glob("*.safetensors.json"):
            record.unlink()
        write_file(work / IDENTITY, about)
    partial.mkdir(exist_ok=True)


def _is_of(work: Path, about: bytes) -> bool:
    mark = work / IDENTITY
    return mark.exists() and mark.read_bytes() == about


def _finished(path: Path, about: bytes) -> Manifest:
    """The manifest of a checkpoint that exists because this very work was stopped when only tidying was left.

    Raises UserError if it is another checkpoint.
    """
    work = progress_of(path)
    same = _is_of(work, about)
    _tidy(work)
    if not same:
        raise UserError(f"{path} is there already: remove it, or choose another name")
    return check(path)


def _tidy(work: Path) -> None:
    """Removes the notes about a checkpoint that is complete; the identity last, so that a stop in here does no harm."""
    for file in work.glob("*"):
        if file.name != IDENTITY:
            file.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _taken_over(work: Path, partial: Path, file: _File) -> FileRecord | None:
    """The record of a file that was finished before a stop; None unless every block is as the record says."""
    boxes = [(name, Box.whole(shape)) for name, shape in file.tensors.items()]
    try:
        blocks = tuple(json.loads((work / f"{file.name}.json").read_bytes())["blocks"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    _, offsets, size = header_of(boxes, file.tensors)
    if len(blocks) != -(-size // BLOCK):
        return None
    stored, memory, reader = StoredFile(size, blocks), np.empty(BLOCK, dtype=np.uint8), BlockReader(partial)
    try:
        for index in range(len(blocks)):
            reader.read(file.name, stored, index, memory[: min(BLOCK, size - index * BLOCK)])
    except CorruptCheckpoint:
        return None
    finally:
        reader.close()
    placed = tuple((name, box, offset) for (name, box), offset in zip(boxes, offsets, strict=True))
    return FileRecord(file.kind, file.name, stored, placed)

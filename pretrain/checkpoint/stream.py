"""Writes a whole checkpoint outside of training, piece by piece: offline growth and imports."""

import json
import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup
from tqdm import tqdm

from growth.box import Box
from pretrain.checkpoint.atomic import Lock, make_folder, write_file
from pretrain.checkpoint.comm import Comm, in_words
from pretrain.checkpoint.commit import commit, partial_of
from pretrain.checkpoint.find import check, step_of
from pretrain.checkpoint.manifest import FileRecord, Manifest, ManifestFields, StoredFile, canonical
from pretrain.checkpoint.writer import Writer, file_name
from pretrain.errors import UserError

SHARD = 4 << 30  # bytes
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
    group: ProcessGroup | None = None,
    shard_bytes: int = SHARD,
    progress: bool = False,
) -> Manifest:
    """Writes the checkpoint `path` with whole tensors (collective: each process writes a share of the files).

    `read` is asked for every tensor of `fields.shapes` in row-major pieces of at most 4 MiB, in order, so the memory
    needed does not depend on the model. A file holds up to about `shard_bytes`. Stopped and called again with the same
    `identity` (JSON that says what `read` reads: its source's hash and the plan, say), it goes on after the files that
    were finished. `progress` shows a bar with bytes/s and the time left.

    Raises UserError on every process when `path` exists, somebody else writes it, or any process fails.
    """
    comm = Comm(group)
    if step_of(path) not in (None, step):
        raise ValueError(f"{path.name} is no name for step {step}")
    shards = _shards(kinds, fields.shapes, shard_bytes)
    identity = {"identity": identity, "shapes": fields.shapes, "kinds": kinds, "shard_bytes": shard_bytes}
    work, partial = _work_of(path), partial_of(path)
    lock: Lock | None = None

    def prepare() -> Manifest | None:
        nonlocal lock
        fields.frozen()
        mark = work / IDENTITY
        same = mark.exists() and mark.read_bytes() == canonical(identity)
        if path.exists():
            _tidy(work)
            if not same:
                raise UserError(f"{path} is there already: remove it, or choose another name")
            return check(path)  # was stopped in its tidying
        make_folder(work)
        lock = Lock(work / "lock")
        if not same:
            _begin(work, partial, canonical(identity))
        partial.mkdir(exist_ok=True)
        return None

    try:
        finished = comm.on_first(prepare)
        if finished:
            return finished
        records, failure, cause = [], "", None
        mine = shards[comm.rank :: comm.world]
        total = sum(4 * prod(fields.shapes[name]) for _, _, names in mine for name in names)
        quiet = not progress or comm.rank > 0
        try:
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=quiet) as bar:
                for kind, index, names in mine:
                    records.append(_shard(work, partial, kind, index, names, read, fields, bar.update))
        except Exception as error:  # told to the other processes, then raised
            failure, cause = in_words(error, partial), error
        told = comm.to_first((records, failure))
        try:
            return comm.on_first(lambda: _finish(path, step, fields, told))
        except UserError as error:
            raise error from error.__cause__ or cause
    finally:
        if lock:
            lock.release()


def _finish(path: Path, step: int, fields: ManifestFields, told: list[tuple[list[FileRecord], str]]) -> Manifest:
    failures = [f"process {rank}: {problem}" for rank, (_, problem) in enumerate(told) if problem]
    if failures:
        raise UserError(f"{path} is not complete. {'; '.join(failures)}. Run it again to go on where it stopped.")
    manifest = Manifest.build(step, fields, [record for records, _ in told for record in records])
    commit(manifest, partial_of(path), path)
    _tidy(_work_of(path))
    return manifest


def _work_of(path: Path) -> Path:
    """What is known about an unfinished checkpoint: identity, lock, and a record for each finished file."""
    return path.with_name(f".{path.name}.progress")


def _tidy(work: Path) -> None:
    """Removes what was known about a checkpoint that is complete; the identity last, so that it can go on with that."""
    for file in work.glob("*"):
        if file.name != IDENTITY:
            file.unlink()
    shutil.rmtree(work, ignore_errors=True)


def _shards(kinds: list[str], shapes: Mapping[str, Any], shard_bytes: int) -> list[tuple[str, int, list[str]]]:
    """(kind, index, tensors) of every file: tensors in order, a new file where the next one would not fit."""
    shards = []
    for kind in kinds:
        files: list[list[str]] = []
        room = 0
        for name, shape in shapes.items():
            size = 4 * prod(shape)
            if not files or size > room:
                files.append([])
                room = shard_bytes
            files[-1].append(name)
            room -= size
        shards += [(kind, index, names) for index, names in enumerate(files)]
    return shards


def _begin(work: Path, partial: Path, identity: bytes) -> None:
    """Forgets what other work left unfinished under this name."""
    shutil.rmtree(partial, ignore_errors=True)
    for record in work.glob("*.safetensors.json"):
        record.unlink()
    write_file(work / IDENTITY, identity)


def _shard(
    work: Path,
    partial: Path,
    kind: str,
    index: int,
    names: list[str],
    read: Read,
    fields: ManifestFields,
    told: Callable[[int], Any],
) -> FileRecord:
    """Writes one file, or takes it as finished when its record says so."""
    file = partial / file_name(kind, index)
    record = work / f"{file.name}.json"
    if record.exists() and file.exists():
        found = json.loads(record.read_bytes())
        if file.stat().st_size == found["size"]:
            told(sum(4 * prod(fields.shapes[name]) for name in names))
            boxes = tuple((name, Box(tuple(a), tuple(b)), offset) for name, a, b, offset in found["boxes"])
            return FileRecord(kind, file.name, StoredFile(found["size"], tuple(found["blocks"])), boxes)
    file.unlink(missing_ok=True)

    def source(name: str) -> Callable[[Box], torch.Tensor]:
        return lambda box: read(kind, name, box)

    entries = [(name, Box.whole(fields.shapes[name]), source(name)) for name in names]
    written = Writer(partial, index).write(kind, entries, fields.shapes, told)
    boxes_json = [[name, box.start, box.stop, offset] for name, box, offset in written.boxes]
    body = {"size": written.file.size, "blocks": written.file.blocks, "boxes": boxes_json}
    write_file(record, canonical(body))
    return written

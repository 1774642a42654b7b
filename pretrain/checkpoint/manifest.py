"""The manifest of a checkpoint: what is in it, where, and from which state of which run it came.

`manifest.json` is written last: a folder without it is no checkpoint. README.md in this folder is the written format.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from growth.box import Box
from growth.evaluate.recipe import KINDS
from pretrain.checkpoint import schema
from pretrain.checkpoint.places import MEMORY, StoredBox, StoredFile, TensorEntry, check_places
from pretrain.errors import UserError
from pretrain.runtime import documents

FORMAT_VERSION = 3
AVERAGE = "average"
STORED = (*KINDS, AVERAGE)
"""The kinds of values that a checkpoint may hold: those of growth, and the moving average of the weights."""
MANIFEST = "manifest.json"


class CorruptCheckpoint(UserError):
    """A checkpoint whose files are not what was written: names the file and, where known, the tensor and the block."""


@dataclass(frozen=True)
class FileRecord:
    """What a writer wrote: the file, and the boxes in it as (tensor, box, byte offset)."""

    kind: str
    name: str
    file: StoredFile
    boxes: tuple[tuple[str, Box, int], ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a run tells about itself, JSON throughout (no NaN or infinity).

    architecture: {"family", "sizes", "scalars"}. events: the growth events so far, oldest first ({"plan",
    "certificate", ...}). generations: births of every axis, and per generation {"birth_tokens", "birth_step",
    "adam_step"}. cursor: of the data stream. progress: {"tokens", "step", "flops", "seconds"}. config: as resolved.
    parent: {"path", "hash"} of the checkpoint that this stage started from.
    """

    architecture: Mapping[str, Any]
    stage: str
    events: Sequence[Mapping[str, Any]] = ()
    generations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cursor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    progress: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parent: Mapping[str, Any] | None = None

    def description(self) -> dict[str, Any]:
        """The fields above, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Description)}


@dataclass(frozen=True, kw_only=True)
class ManifestFields(Description):
    """What a save needs besides the tensors. shapes: the full shape of every logical tensor."""

    shapes: Mapping[str, Sequence[int]]

    def frozen(self) -> "ManifestFields":
        """A deep copy. Raises ValueError naming the field that is no JSON."""
        copies = {}
        for name, value in self.description().items():
            try:
                copies[name] = plain(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} of the manifest is no JSON: {error}") from error
        return ManifestFields(shapes=dict(self.shapes), **copies)


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """A checkpoint. `hash` is the xxh3_128 of the canonical JSON of everything else; a child's `parent` names it."""

    step: int
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, StoredFile]
    hash: str
    format_version: int = 2

    @property
    def model(self) -> Mapping[str, TensorEntry]:
        """The tensors of the model, and of its optimizer."""
        return {name: tensor for name, tensor in self.tensors.items() if MEMORY not in tensor.boxes}

    def has(self, kind: str) -> bool:
        """Whether the checkpoint holds this kind (moments may be absent: an imported model)."""
        return any(kind in t.boxes for t in self.tensors.values())

    @property
    def size(self) -> int:
        """Bytes of all tensor files."""
        return sum(f.size for f in self.files.values())

    @property
    def age(self) -> tuple[int, int, int]:
        """Later in a run is larger: tokens of the run, then growth events, then steps."""
        return self.progress.get("tokens", 0), len(self.events), self.step

    @staticmethod
    def build(step: int, fields: ManifestFields, records: Sequence[FileRecord]) -> "Manifest":
        """The manifest of files just written.

        Raises ValueError when the boxes of a kind do not tile every tensor exactly once, or do not fill the files: a
        layout that is wrong must not become a checkpoint, and what is written can be read.
        """
        boxes: dict[str, dict[str, list[StoredBox]]] = {name: {} for name in fields.shapes}
        for record in records:
            for name, box, offset in record.boxes:
                if name not in boxes:
                    raise ValueError(f"{record.name} holds {name}, which is no tensor of this architecture")
                boxes[name].setdefault(record.kind, []).append(StoredBox(record.name, offset, box))
        kinds = sorted({r.kind for r in records if r.boxes} - {MEMORY}, key=STORED.index)
        tensors = {}
        for name, shape in fields.shapes.items():
            own = (MEMORY,) if MEMORY in boxes[name] else kinds
            ordered = {kind: tuple(sorted(boxes[name].get(kind, ()), key=lambda b: b.box)) for kind in own}
            tensors[name] = TensorEntry(tuple(shape), ordered)
        files = {r.name: r.file for r in sorted(records, key=lambda r: r.name) if r.boxes}
        check_places(tensors, files)
        about = {
            **fields.frozen().description(),
            "format_version": 3 if AVERAGE in kinds or any(MEMORY in b for b in boxes.values()) else 2,
        }
        manifest = Manifest(step=step, tensors=tensors, files=files, hash="", **about)
        return dataclasses.replace(manifest, hash=digest(manifest._body()))

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        return canonical({**self._body(), "hash": self.hash}) + b"\n"

    @staticmethod
    def from_bytes(data: bytes, where: Path) -> "Manifest":
        """Parses and verifies `manifest.json`: all of it, before any of the files that it names is opened.

        Raises CorruptCheckpoint when it is not what was written, UserError when its format is newer than this code.
        """
        try:
            body = documents.parse(data, where)
        except UserError as error:
            raise CorruptCheckpoint(f"{where}: no manifest of a checkpoint ({error})") from error
        if not isinstance(body, dict) or type(body.get("format_version")) is not int or "hash" not in body:
            raise CorruptCheckpoint(f"{where}: no manifest of a checkpoint")
        version, stated_hash = body["format_version"], body.pop("hash")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{where}: format version {version}, and this Cambium reads up to {FORMAT_VERSION}: "
                "update Cambium to read this checkpoint"
            )
        if digest(body) != stated_hash:
            raise CorruptCheckpoint(f"{where}: the manifest's hash does not match its content")
        try:
            manifest = _from_body(documents.checked(schema.Manifest, body, where), stated_hash)
            check_places(manifest.tensors, manifest.files)
        except (UserError, ValueError) as error:
            problem = documents.one_line(str(error).removeprefix(f"{where}: "))
            raise CorruptCheckpoint(f"{where}: not the manifest of a format {version} checkpoint: {problem}") from error
        return manifest

    @staticmethod
    def load(checkpoint: Path) -> "Manifest":
        """The verified manifest of a checkpoint folder; raises as `from_bytes` does."""
        path = checkpoint / MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            what = "no manifest.json" if checkpoint.is_dir() else "no such folder"
            raise CorruptCheckpoint(f"{checkpoint}: {what}, so this is no checkpoint") from error
        except OSError as error:
            raise CorruptCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
        return Manifest.from_bytes(data, path)

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"format_version": self.format_version, "step": self.step, **self.description()}
        body["tensors"] = {
            name: {
                "shape": t.shape,
                "boxes": {k: [[b.file, b.offset, b.box.start, b.box.stop] for b in v] for k, v in t.boxes.items()},
            }
            for name, t in self.tensors.items()
        }
        body["files"] = {name: {"size": f.size, "blocks": f.blocks} for name, f in self.files.items()}
        return body


def _from_body(body: Mapping[str, Any], stated_hash: str) -> Manifest:
    """The manifest with a body that schema.Manifest has checked. Raises ValueError for a malformed box."""
    tensors = {
        name: TensorEntry(tuple(t["shape"]), {k: tuple(_box(*b) for b in v) for k, v in t["boxes"].items()})
        for name, t in body["tensors"].items()
    }
    files = {name: StoredFile(f["size"], tuple(f["blocks"])) for name, f in body["files"].items()}
    described = {f.name: body[f.name] for f in dataclasses.fields(Description)}
    return Manifest(
        step=body["step"],
        tensors=tensors,
        files=files,
        hash=stated_hash,
        format_version=body["format_version"],
        **described,
    )


def _box(file: Any, offset: Any, start: Any, stop: Any) -> StoredBox:
    right = type(file) is str and type(offset) is int and type(start) is list and type(stop) is list
    if not right or not all(type(n) is int and abs(n) < 1 << 62 for n in (offset, *start, *stop)):
        raise ValueError(f"no box: {documents.show([file, offset, start, stop])}")
    return StoredBox(file, offset, Box(tuple(start), tuple(stop)))


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, shortest round-trip floats. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: a deep copy with lists for tuples."""
    return json.loads(canonical(value))


def digest(body: Any) -> str:
    """The hash of a manifest's body."""
    return xxhash.xxh3_128_hexdigest(canonical(body))

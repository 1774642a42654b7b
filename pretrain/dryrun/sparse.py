"""Checkpoints of any size that take no room on the disk: every element is zero, in files with holes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash

from growth.box import Box
from pretrain.checkpoint import KINDS, FileRecord, Manifest, ManifestFields
from pretrain.checkpoint.blocks import BLOCK
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.places import StoredFile
from pretrain.checkpoint.writer import file_name, header_of


def sparse_checkpoint(folder: Path, fields: ManifestFields, step: int = 0, kinds: Sequence[str] = KINDS) -> Manifest:
    """A checkpoint of one file per kind with whole tensors, as large as the shapes of `fields` say."""
    folder.mkdir(parents=True)
    records = [_sparse_file(folder, kind, fields.shapes) for kind in kinds]
    manifest = Manifest.build(step, fields, records)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def _sparse_file(folder: Path, kind: str, shapes: Mapping[str, Sequence[int]]) -> FileRecord:
    header, offsets, size = header_of([(name, Box.whole(shape)) for name, shape in shapes.items()], shapes)
    with open(folder / file_name(kind, 0), "wb") as file:
        file.write(header)
        file.truncate(size)
    first = header + bytes(BLOCK)[len(header) :]
    hashes = [xxhash.xxh3_128_hexdigest(first[: min(BLOCK, size)])]
    zeros = xxhash.xxh3_128_hexdigest(bytes(BLOCK))
    hashes += [zeros] * (size // BLOCK - 1)
    if size > BLOCK and size % BLOCK:
        hashes.append(xxhash.xxh3_128_hexdigest(bytes(size % BLOCK)))
    boxes = tuple(
        (name, Box.whole(shape), offset) for (name, shape), offset in zip(shapes.items(), offsets, strict=True)
    )
    return FileRecord(kind, file_name(kind, 0), StoredFile(size, tuple(hashes)), boxes)

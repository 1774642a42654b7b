"""Checkpoints of Megatron-core's dist_checkpointing: full-size tensors in chunks, and a pickle with their places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from growth import Architecture, Box
from pretrain import families
from pretrain.errors import UserError
from pretrain.layout.cuts import Parameter, Place
from pretrain.megatron_lm.archive import Stored, load
from pretrain.megatron_lm.arguments import architecture_of, arguments_of, constants
from pretrain.megatron_lm.known import KNOWN
from pretrain.megatron_lm.names import IGNORED, canonical, layer_of, without_layer
from pretrain.megatron_lm.pickles import Record, plain
from pretrain.megatron_lm.source import MOMENTS, Opened, Source, number
from pretrain.runtime.documents import one_line, show

COMMON, METADATA = "common.pt", ".metadata"
FILE = re.compile(r"[\w-]+\.distcp", re.ASCII)
_OPTIMIZER = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(exp_avg|exp_avg_sq|fp32_param|param)\.(.*)")
_BUCKETS = re.compile(r"(?:chained_\d+\.)?optimizer\.distributed\.")
_HALVES = (("_w", 0), ("_v", 1))  # a gated matrix whose halves are tensors of their own


class Chunk(NamedTuple):
    """A box of a full-size tensor, and where it is."""

    box: Box
    stored: Stored


class Tensor(NamedTuple):
    shape: tuple[int, ...]
    chunks: list[tuple[tuple[int, ...], tuple[int, ...]]]


def open_torch_dist(folder: Path, given: Mapping[str, Any] | None, moments: bool) -> Opened:
    """The checkpoint in `folder`, one iteration. given: its arguments, where it has none. Raises UserError."""
    common = load(folder / COMMON)
    if not isinstance(common, dict):
        raise UserError(f"{folder / COMMON}: it holds no dict, so it is not what Megatron-core writes")
    index = _Index(folder)
    args = arguments_of(common, given, folder)
    arch = architecture_of(args, str(folder))
    source = Source(folder, arch)
    tensors = _Names(index)
    for parameter in families.of(arch.family).layout(arch, whole(arch)):
        kinds = tensors.of(parameter.name)
        master = next((kinds[kind] for kind in ("fp32_param", "param", "weight") if kind in kinds), None)
        if master is None:
            raise UserError(f"{folder}: {parameter.name} is not there, and the arguments say that it is")
        wanted = {"weight": master}
        wanted |= {kind: kinds[kind] for kind in MOMENTS if moments and kind in kinds}
        for kind, keys in wanted.items():
            for chunk in _chunks(index, keys, parameter, folder):
                source.hold(kind, parameter, chunk.box, chunk.stored)
    if left := tensors.unknown():
        raise UserError(
            f"{folder}: {len(left)} tensor(s) are unknown to Cambium's {arch.family}, such as {one_line(left[0])}"
        )
    if moments and index.buckets and len(source.kinds) == 1:
        raise UserError(
            f"{folder}: Adam's moments are in the buckets of a distributed optimizer (dp_reshardable), whose places "
            "only Megatron-LM knows: save once more with --dist-ckpt-optim-fully-reshardable, or import --weights-only"
        )
    source.check()
    iteration = number(common.get("iteration", 0), f"{folder / COMMON}: iteration")
    step, optimizer = constants(common.get("optimizer"), str(folder / COMMON), iteration)
    has = len(source.kinds) > 1
    return Opened(source, "torch_dist", args, iteration, step if has else 0, optimizer if has else {})


def whole(arch: Architecture) -> Place:
    """The place of all of a model."""
    return Place(0, 1, tuple(enumerate(arch.blocks)), True, True)


class _Index:
    """What .metadata says: the shape and the chunks of each tensor, and where each chunk lies."""

    def __init__(self, folder: Path) -> None:
        path = folder / METADATA
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        self.folder, self.where = folder, str(path)
        metadata = plain(data, self.where, KNOWN)
        try:
            self.tensors: dict[str, Tensor] = dict(self._tensors(metadata.fields["state_dict_metadata"]))
            self.places: dict[Any, Any] = dict(self._places(metadata.fields["storage_data"]))
            self.buckets = any(_BUCKETS.match(name) for name in metadata.fields["state_dict_metadata"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: no metadata of a checkpoint ({show(error)})") from error

    @staticmethod
    def _tensors(entries: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for name, entry in entries.items():
            if "size" in entry.fields:
                chunks = [(_shape(c.fields["offsets"]), _shape(c.fields["sizes"])) for c in entry.fields["chunks"]]
                yield name, Tensor(_shape(entry.fields["size"]), chunks)

    @staticmethod
    def _places(entries: Mapping[Record, Record]) -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
        for key, place in entries.items():
            yield (key.fields["fqn"], key.fields.get("offset")), place.fields

    def stored(self, name: str, offset: tuple[int, ...]) -> Stored:
        """The chunk of a tensor that begins there."""
        place = self.places.get((name, offset))
        if place is None:
            raise UserError(f"{self.where}: it does not say where {one_line(name)} at {offset} lies")
        file, begin, length = (place.get(key) for key in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or not FILE.fullmatch(file) or type(begin) is not int or type(length) is not int:
            raise UserError(f"{self.where}: {show(file)} is no name of a .distcp file beside it")
        if place.get("transform_descriptors"):
            raise UserError(f"{self.where}: {one_line(name)} is stored compressed or encrypted, and cannot be read")
        if not (self.folder / file).is_file():
            raise UserError(f"{self.folder / file}: .metadata names it, and it is not there")
        stored = load(self.folder / file, begin, length)
        if not isinstance(stored, Stored):
            raise UserError(f"{self.folder / file}: no tensor at byte {begin}, where {one_line(name)} should be")
        return stored


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    if any(type(n) is not int or not 0 <= n < 1 << 60 for n in shape):
        raise ValueError(f"no shape: {show(value)}")
    return shape


class _Names:
    """Keys of the checkpoint by canonical name and kind. Those of stacked layers have no number, and each layer asks
    for them."""

    def __init__(self, index: _Index) -> None:
        self.keys: dict[str, dict[str, list[str]]] = {}
        self.asked: set[str] = set()
        for key in index.tensors:
            if IGNORED.search(key) or _BUCKETS.match(key) or key.startswith(("rng_state", "rerun_state_machine")):
                continue
            match = _OPTIMIZER.fullmatch(key)
            kind, name = match.groups() if match else ("weight", key)
            self.keys.setdefault(canonical(_joined(name)), {}).setdefault(kind, []).append(key)

    def of(self, parameter: str) -> dict[str, list[str]]:
        """The keys of a parameter, by kind."""
        name = parameter if parameter in self.keys else without_layer(parameter)
        self.asked.add(name)
        return self.keys.get(name, {})

    def unknown(self) -> list[str]:
        """Names that no parameter has asked for."""
        return sorted(set(self.keys) - self.asked)


def _joined(name: str) -> str:
    """The name without the mark of a half of a gated matrix."""
    return re.sub(r"(linear_fc1\.weight)_[wv]$", r"\1", name)


def _chunks(index: _Index, keys: list[str], parameter: Parameter, folder: Path) -> Iterator[Chunk]:
    """All chunks of a parameter, in its coordinates."""
    for key in sorted(keys, reverse=True):  # _w before _v
        tensor = index.tensors[key]
        layer = layer_of(parameter.name) if layer_of(canonical(key)) is None else None
        stacked = layer is not None and len(tensor.shape) == len(parameter.shape) + 1
        shape = tensor.shape[1:] if stacked else tensor.shape
        half = next((n for mark, n in _HALVES if key.endswith(mark)), None)
        wanted = parameter.shape if half is None else (parameter.shape[0] // 2, *parameter.shape[1:])
        if shape != wanted:
            raise UserError(
                f"{folder}: {one_line(key)} has shape {tensor.shape}, and the arguments say {wanted} for each layer"
            )
        for offset, size in tensor.chunks:
            if stacked and not offset[0] <= (layer or 0) < offset[0] + size[0]:
                continue
            stored = index.stored(key, offset)
            if stored.shape != size:
                raise UserError(
                    f"{folder}: {one_line(key)} at {offset} has shape {stored.shape}, and .metadata says {size}"
                )
            at = offset[1:] if stacked else offset
            if stacked:
                stored = stored.selected((layer or 0) - offset[0])
            if half:
                at = (at[0] + parameter.shape[0] // 2, *at[1:])
            yield Chunk(Box(at, tuple(a + n for a, n in zip(at, stored.shape, strict=True))), stored)

"""The tensors of a Hugging Face folder, read box by box. Only safetensors: no pickle is ever loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from growth import Architecture, Box
from pretrain.checkpoint.writer import PIECE
from pretrain.errors import UserError
from pretrain.families.common.hf.form import MODULES, SORTED, HfForm
from pretrain.families.common.hf.pickles import refuse_pickles
from pretrain.families.common.hf.values import Index
from pretrain.hf.files import CODES, INDEX
from pretrain.runtime import documents

FILE = re.compile(r"[\w+=@,-][\w.+=@,-]{0,240}\.safetensors", re.ASCII)


class HfWeights:
    """The weights of a folder, checked against an architecture.

    Raises UserError when there are none, when they are pickles, or when a tensor is missing, unknown, of another shape,
    of a dtype that is no float or not in the file of the index, or when the model has an output layer of its own.
    """

    def __init__(self, folder: Path, family: HfForm, arch: Architecture) -> None:
        self.folder = folder
        self.files, self.arch = _files(folder), arch
        if arch.layers > len(self.files):  # checked before a list of their tensors is made
            raise UserError(f"{folder}: the config has {arch.layers} layers, and there are {len(self.files)} tensors")
        # A folder of the model without its output layer, as many have been published, has the names without the base.
        base = "" if any(name.startswith(family.base) for name in self.files) else family.base
        expected = {name.removeprefix(base): family.stored(name) for name in family.names(arch)}
        self._rows = {part: (name, stored) for name, stored in expected.items() for part in stored.parts}
        present = {name for name in self.files if name not in family.tied and not name.endswith(family.repeated)}
        if missing := sorted(set(expected) - present):
            raise UserError(f"{folder}: {len(missing)} tensor(s) of the config are not there, such as {missing[0]}")
        if unknown := sorted(present - set(expected)):
            first = documents.one_line(unknown[0])
            raise UserError(f"{folder}: {len(unknown)} tensor(s) are unknown to {family.model_class}: {first}")
        self.dtypes = set()
        for name, stored in expected.items():
            with self._tensor(name) as piece:
                shape = tuple(piece.get_shape())
                self.dtypes.add(str(piece.get_dtype()))
            if shape != stored.shape(arch):
                raise UserError(f"{folder}: {name} has shape {shape}, and the config says {stored.shape(arch)}")
        if strange := sorted(self.dtypes - set(CODES.values())):
            raise UserError(
                f"{folder}: weights in {', '.join(strange)}: only {', '.join(CODES.values())} can be imported"
            )
        orders = [[name.removeprefix(base) for name in family.names(arch, order)] for order in (MODULES, SORTED)]
        self.shard_order = _order(orders, self.files)
        for name, row in family.tied.items():
            if name in self.files and not self._equal(name, row.removeprefix(base)):
                raise UserError(
                    f"{folder}: {name} is not {row.removeprefix(base)}: an output layer of its own cannot be imported"
                )

    def read(self, name: str, box: Box) -> torch.Tensor:
        """The fp32 content of a box of a logical tensor."""
        row, stored = self._rows[name]
        content = self._read(row, stored.place(self.arch, name, box))
        return content.T.contiguous() if stored.turned else content

    def check_finite(self, progress: bool = False) -> None:
        """Reads every weight. Raises UserError naming the first tensor with a weight that is NaN or infinite."""
        total = 4 * self.arch.parameters()
        with tqdm(total=total, unit="B", unit_scale=True, desc="are all weights finite", disable=not progress) as bar:
            for row in dict.fromkeys(row for row, _ in self._rows.values()):
                with self._tensor(row) as piece:
                    shape = tuple(piece.get_shape())
                for box in Box.whole(shape).parts(PIECE):
                    if not self._read(row, box).isfinite().all():
                        raise UserError(f"{self.folder / self.files[row]}: {row} has weights that are NaN or infinite")
                    bar.update(4 * box.numel)

    def identity(self) -> dict[str, list[int]]:
        """The size and the time of last change of each file, by which an unchanged folder is recognised unread."""
        stats = {file: (self.folder / file).stat() for file in sorted(set(self.files.values()))}
        return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}

    def _equal(self, name: str, other: str) -> bool:
        """Whether two tensors of the files are the same; only a piece of each is in memory at a time."""
        with self._tensor(name) as first, self._tensor(other) as second:
            shape = tuple(first.get_shape())
            if shape != tuple(second.get_shape()):
                return False
        return all(torch.equal(self._read(name, box), self._read(other, box)) for box in Box.whole(shape).parts(PIECE))

    def _read(self, name: str, box: Box) -> torch.Tensor:
        with self._tensor(name) as piece:
            content: torch.Tensor = piece[box.slices()].to(torch.float32)
            return content

    @contextmanager
    def _tensor(self, name: str) -> Iterator[Any]:
        """Opens a tensor's file at the tensor, for the time of the context only: a mapped file counts as memory."""
        path = self.folder / self.files[name]
        with _opened(path) as file:
            try:
                piece = file.get_slice(name)
            except SafetensorError as error:
                raise UserError(f"{path} has no {name}, which {INDEX} says it has ({error})") from error
            yield piece


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor. Raises UserError if a folder has no safetensors files, or an index that misleads."""
    if (folder / INDEX).is_file():
        weight_map: dict[str, str] = documents.read(folder / INDEX, Index)["weight_map"]
        for file in sorted(set(weight_map.values())):
            if not FILE.fullmatch(file):
                raise UserError(f"{folder / INDEX}: {documents.show(file)} is no name of a safetensors file beside it")
            if not (folder / file).is_file():
                raise UserError(f"{folder / file}: the index names it, and it is not there")
        return weight_map
    single = folder / "model.safetensors"
    if single.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single.name)
    refuse_pickles(folder)
    raise UserError(f"{folder}: no model.safetensors and no {INDEX} in it, so there are no weights to import")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file, or a damaged one ({error})") from error


def _order(orders: list[list[str]], files: dict[str, str]) -> str:
    """MODULES or SORTED: the order of tensors in which they were cut into files."""
    for order, names in zip((MODULES, SORTED), orders, strict=True):
        along = [files[name] for name in names]
        if along == sorted(along):
            return order
    return MODULES

"""Files that `torch.save` wrote (zip archives), read without torch.load: objects as plain data, tensors where they lie.

A tensor is not read with its file: it is a `Stored`, of which any box can be read. So a checkpoint may be larger than
memory.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from growth import Box
from pretrain.errors import UserError
from pretrain.megatron_lm.known import KNOWN, Storage
from pretrain.megatron_lm.pickles import Maker, plain
from pretrain.runtime.documents import one_line, show

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST_PICKLE = 1 << 30  # bytes: tensors lie beside the pickle, so that one of a checkpoint is far smaller


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its first element at byte `begin`, strides in elements."""

    path: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, box: Box) -> torch.Tensor:
        """The content of a box, fp32. Raises UserError for a dtype that is no float and a file that has ended."""
        if self.dtype not in FLOATS:
            raise UserError(f"{self.path}: a tensor of {self.dtype} where weights are expected: only floats are read")
        first = sum(a * stride for a, stride in zip(box.start, self.strides, strict=True))
        last = sum((b - 1) * stride for b, stride in zip(box.stop, self.strides, strict=True))
        data = bytearray((last - first + 1) * self.dtype.itemsize)
        done, at = 0, self.begin + first * self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            while done < len(data):
                n = os.preadv(file.fileno(), [memoryview(data)[done:]], at + done)
                if not n:
                    raise UserError(f"{self.path}: the file ends before its tensors do")
                done += n
        flat = torch.frombuffer(data, dtype=self.dtype)
        return flat.as_strided(box.shape, self.strides).to(torch.float32)

    def part(self, box: Box) -> Stored:
        """The box as a tensor of its own."""
        first = sum(a * stride for a, stride in zip(box.start, self.strides, strict=True))
        return replace(self, begin=self.begin + first * self.dtype.itemsize, shape=box.shape)

    def selected(self, index: int) -> Stored:
        """One index of the first dimension."""
        begin = self.begin + index * self.strides[0] * self.dtype.itemsize
        return replace(self, begin=begin, shape=self.shape[1:], strides=self.strides[1:])


def load(path: Path, offset: int = 0, length: int | None = None) -> Any:
    """The object in a file of torch.save, or in a part of a file, as plain data with a `Stored` for each tensor.

    Raises UserError where it cannot be read: not there, not in this format, damaged, or with a pickle that asks for
    anything but tensors and plain data.
    """
    try:
        size = path.stat().st_size
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise UserError(
                f"{path}: it has {size} bytes, and something is said to lie at {offset} to {offset + length}"
            )
        with open(path, "rb") as file:
            window = _Window(file, offset, length)
            if not zipfile.is_zipfile(window):
                raise UserError(
                    f"{path}: no file that torch.save writes since version 1.6 (a zip archive): older ones are pickles "
                    "throughout, and are not loaded. Load and save it again where you trust it"
                )
            with zipfile.ZipFile(io.BufferedReader(window)) as archive:
                return _content(path, offset, file, archive)
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError, RuntimeError) as error:
        # RuntimeError is also what zipfile says of a damaged header that asks for a password or another compression.
        raise UserError(f"{path}: it is damaged ({one_line(str(error))})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _content(path: Path, offset: int, file: io.BufferedReader, archive: zipfile.ZipFile) -> Any:
    entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()) or "data.pkl" not in entries:
        raise UserError(f"{path}: a zip archive, and none that torch.save wrote (it has no data.pkl, or several)")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise UserError(f"{path}: a compressed archive, which torch.save does not write")
    if entries["data.pkl"].file_size > LARGEST_PICKLE:
        raise UserError(
            f"{path}: its pickle has {entries['data.pkl'].file_size} bytes, too many for one beside tensors"
        )
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise UserError(f"{path}: its numbers are not little-endian, and cannot be read")

    def storage(persistent: Any) -> Storage:
        right = isinstance(persistent, tuple) and len(persistent) == 5 and persistent[0] == "storage"
        if not right or not isinstance(persistent[1], torch.dtype) or type(persistent[4]) is not int:
            raise UserError(f"{path}: the pickle in it refers to {show(persistent)}, which is no storage of a tensor")
        _, dtype, key, _, numel = persistent
        info = entries.get(f"data/{key}")
        if info is None:
            raise UserError(f"{path}: it has no storage {show(key)}, to which the pickle in it refers")
        if numel < 0 or numel * dtype.itemsize > info.file_size:
            raise UserError(
                f"{path}: storage {show(key)} is said to have {numel} elements of {dtype}, and it has {info.file_size} "
                "bytes"
            )
        return Storage(_begin(path, offset, file, info), dtype, numel)

    return plain(archive.read(entries["data.pkl"]), str(path), {**KNOWN, **_tensors(path)}, storage)


def _begin(path: Path, offset: int, file: io.BufferedReader, info: zipfile.ZipInfo) -> int:
    """The byte of the file at which an entry's content begins, behind its local header."""
    at = offset + info.header_offset
    header = os.pread(file.fileno(), 30, at)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path}: it is damaged (no header of {one_line(info.filename)})")
    at += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if at + info.file_size > os.fstat(file.fileno()).st_size:
        raise UserError(f"{path}: the file ends before {one_line(info.filename)} does")
    return at


def _tensors(path: Path) -> Mapping[str, Any]:
    """What rebuilds a tensor, by the names in pickles."""

    def tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Stored:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor of no storage")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or any(type(n) is not int or not 0 <= n < 1 << 60 for n in numbers):
            raise ValueError(f"a tensor of shape {show(shape)} with strides {show(strides)}")
        end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
        if 0 not in shape and end > storage.numel:
            raise UserError(f"{path}: a tensor of shape {show(shape)} reaches beyond its storage of {storage.numel}")
        begin = storage.begin + offset * storage.dtype.itemsize
        return Stored(path, begin, storage.dtype, tuple(shape), tuple(strides))

    def of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
        if not isinstance(function, Maker):
            raise TypeError("a tensor that is made by no function")
        return function.make(*args)

    return {
        "torch._utils._rebuild_tensor_v2": Maker(tensor),
        "torch._utils._rebuild_parameter": Maker(lambda data, *_: data),
        "torch._utils._rebuild_parameter_with_state": Maker(lambda data, *_: data),
        "torch._tensor._rebuild_from_type_v2": Maker(of_type),
    }


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if start + position < 0:
            raise OSError(22, "a place before the beginning of the file")
        self._at = start + position
        return self._at

    def readinto(self, into: Any) -> int:
        view = memoryview(into)[: max(0, self._length - self._at)]
        n = os.preadv(self._file.fileno(), [view], self._offset + self._at) if len(view) else 0
        self._at += n
        return n

"""The safetensors files of a Hugging Face folder, byte for byte as save_pretrained writes them, from a stream."""

import json
import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from growth import Box
from pretrain.checkpoint.writer import PIECE
from pretrain.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
INDEX = "model.safetensors.index.json"

Read = Callable[[str, Box], torch.Tensor]
"""(tensor, box) -> the fp32 content of the box."""


def shards(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int) -> dict[str, list[str]]:
    """The names of the tensors of each file. shapes: in the order of the state_dict; shard_bytes: max_shard_size of
    save_pretrained."""
    split = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: prod(shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    return split.filename_to_tensors


def index(files: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> str:
    """The content of model.safetensors.index.json."""
    parameters = sum(map(prod, shapes.values()))
    metadata = {"total_parameters": parameters, "total_size": parameters * dtype.itemsize}
    weight_map = {name: file for file, names in files.items() for name in names}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def write_shard(
    path: Path,
    names: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    read: Read,
    progress: Callable[[int], object],
) -> None:
    """Write a file unless it is there complete. It appears under its name when the disk has all of it.

    Raises UserError when a weight is too large for the dtype.
    """
    header = _header(names, shapes, dtype)
    size = sum(prod(shapes[name]) for name in names) * dtype.itemsize
    if path.exists() and path.stat().st_size == len(header) + size:
        progress(size)
        return
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as out:
        out.write(header)
        for name in sorted(names):
            for box in Box.whole(shapes[name]).parts(PIECE):
                progress(_write(out, name, read(name, box), dtype))
        out.flush()
        os.fsync(out.fileno())
    partial.rename(path)


def _header(names: list[str], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    """The header of a file. The safetensors library orders tensors by dtype, then by name; here all have one dtype."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(names):
        end = at + prod(shapes[name]) * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shapes[name]), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(out: BinaryIO, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> int:
    cast = tensor.to(dtype).contiguous()
    if dtype is torch.float16 and not torch.equal(cast.isfinite(), tensor.isfinite()):
        raise UserError(f"{name} has weights beyond the range of fp16 (65504): use bf16 or fp32")
    return out.write(cast.view(torch.uint8).numpy().data)

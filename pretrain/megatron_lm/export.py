"""A checkpoint as a folder that Megatron-LM loads, in torch_dist: streamed, a chunk of a tensor in memory at a time.

All is in fp32, and Megatron-core casts what it loads. So the weights of the model and the masters of its optimizer are
the same bytes, under the names of both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from tqdm import tqdm

from growth import Architecture, Box
from pretrain import families
from pretrain.checkpoint import KINDS, Reader
from pretrain.errors import UserError
from pretrain.hf.rows import reordered
from pretrain.hf.tokenizers import Vocabulary, imported, vocabulary
from pretrain.layout.cuts import Parameter
from pretrain.megatron_lm.corrections import Corrections
from pretrain.megatron_lm.folders import TRACKER
from pretrain.megatron_lm.names import fused, layer_of, without_layer
from pretrain.megatron_lm.torch_dist import COMMON, METADATA, whole
from pretrain.runtime.files import Lock, fsync_folder, make_folder, write_file

CHUNK = 64 << 20  # bytes: what is in memory at a time, and what one rank of Megatron-LM reads at least
FILE = 4 << 30  # bytes: a file of chunks is about so large at most
PREFIXES = {
    "weight": ("", "optimizer.state.fp32_param.", "optimizer.state.param."),
    "exp_avg": ("optimizer.state.exp_avg.",),
}
PREFIXES["exp_avg_sq"] = ("optimizer.state.exp_avg_sq.",)
MODULES = ("self_attention.linear_proj", "self_attention.linear_qkv", "self_attention.core_attention")
STATES = (*MODULES, "mlp.linear_fc1", "mlp.linear_fc2")
"""Modules of a layer that may ask for a state of their own, which for numbers that are not fp8 is nothing."""


@dataclass(frozen=True)
class Exported:
    """What `export_megatron` made. step: updates that Megatron-LM will take its optimizer to have made."""

    checkpoint: Path
    folder: Path
    iteration: int
    step: int
    moments: bool
    parameters: int
    bytes: int


def export_megatron(
    checkpoint: Path, folder: Path, *, tokenizer: Path | None = None, progress: bool = False
) -> Exported:
    """Write a checkpoint to a folder that is not there yet, as Megatron-LM's --load.

    Raises UserError for a model that Megatron-LM cannot have, a tokenizer that is not there, and a folder that is.
    """
    with Reader(checkpoint) as reader:
        manifest = reader.manifest
        arch = Architecture.from_json(manifest.architecture)
        form = families.of(arch.family).megatron
        if form is None:
            raise UserError(f"{checkpoint}: Cambium's {arch.family} has no form in Megatron-LM's arguments")
        arguments = form.arguments(arch)
        if folder.exists():
            raise UserError(f"{folder} is there already: choose another folder")
        words = _words(reader, checkpoint, tokenizer)
        corrections = Corrections(manifest, arch)
        moments = reader.has("exp_avg")
        tensors, rows = arch.tensors(), words.source if words else None

        def read(kind: str, name: str, box: Box) -> torch.Tensor:
            return reordered(partial(corrections.read, reader, kind, name), tensors[name], rows, box)

        work = folder.absolute().with_name(f".{folder.absolute().name}.partial")
        try:
            make_folder(work)
            with Lock(work / LOCK):
                for path in work.iterdir():  # what an export that was stopped has left
                    if path.name != LOCK:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                place = work / f"iter_{manifest.step:07d}"
                make_folder(place)
                chunks = _Chunks(place, arch, read, progress)
                for kind in KINDS if moments else KINDS[:1]:
                    chunks.write(kind, PREFIXES[kind] if moments else PREFIXES[kind][:1])
                chunks.finish()
                common = _common(
                    manifest.config, manifest.progress, arguments, manifest.step, corrections.step, moments
                )
                torch.save(common, place / COMMON)
                write_file(place / "metadata.json", json.dumps(BACKEND).encode())
                if words:
                    make_folder(work / "tokenizer")
                    words.write(work / "tokenizer")
                write_file(work / TRACKER, str(manifest.step).encode())
                _sync(work)
                work.rename(folder)
                (folder / LOCK).unlink()
                fsync_folder(work.parent)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror} ({error.filename or work})") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(
        checkpoint, folder, manifest.step, corrections.step if moments else 0, moments, arch.parameters(), size
    )


LOCK = "lock"
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def _sync(folder: Path) -> None:
    """Has everything in a folder on the disk, before it gets its name."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _words(reader: Reader, checkpoint: Path, tokenizer: Path | None) -> Vocabulary | None:
    """The vocabulary; None where its rows are in the order of their ids, and no files of a tokenizer are known."""
    record = imported(reader.manifest).get("vocabulary")
    if record and record["order"] == "identity" and record["tokenizer"] is None and tokenizer is None:
        return None
    return vocabulary(checkpoint, reader.manifest, tokenizer)


class _Chunks:
    """The .distcp files of a checkpoint and their index."""

    def __init__(
        self, folder: Path, arch: Architecture, read: Callable[[str, str, Box], torch.Tensor], progress: bool
    ) -> None:
        self.folder, self.arch, self.read, self.progress = folder, arch, read, progress
        self.tensors: dict[str, Any] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self.number = self.size = 0

    def write(self, kind: str, prefixes: tuple[str, ...]) -> None:
        """Every tensor of a kind, once, under each of these prefixes."""
        total = 4 * self.arch.parameters()
        with tqdm(total=total, unit="B", unit_scale=True, desc=kind, disable=not self.progress) as bar:
            for parameter in families.of(self.arch.family).layout(self.arch, whole(self.arch)):
                for box in Box.whole(parameter.shape).parts(CHUNK):
                    self._write(kind, parameter, box, prefixes)
                    bar.update(4 * box.numel)

    def _write(self, kind: str, parameter: Parameter, box: Box, prefixes: tuple[str, ...]) -> None:
        value = torch.empty(box.shape)
        for piece in parameter.pieces:
            if overlap := piece.local.intersect(box):
                there = overlap.relative_to(piece.local).moved(piece.box.start)
                value[overlap.relative_to(box).slices()] = self.read(kind, piece.tensor, there)
        name, layer = fused(parameter.name), layer_of(parameter.name)
        size, offset = parameter.shape, box.start
        if layer is not None:  # the layers of a model are stacked
            name, value = without_layer(name), value[None]
            size, offset = (self.arch.layers, *size), (layer, *offset)
        place = self._item(lambda out: torch.save(value, out))
        chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(value.shape))
        for prefix in prefixes:
            entry = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size(size), [])
            self.tensors.setdefault(prefix + name, entry).chunks.append(chunk)
            self.places[MetadataIndex(prefix + name, chunk.offsets)] = place

    def _item(self, save: Callable[[io.BytesIO], None]) -> _StorageInfo:
        if self.size > FILE:
            self.number, self.size = self.number + 1, 0
        name, begin, buffer = f"__0_{self.number}.distcp", self.size, io.BytesIO()
        save(buffer)
        with open(self.folder / name, "ab") as out:
            self.size += out.write(buffer.getbuffer())
        return _StorageInfo(name, begin, self.size - begin)

    def finish(self) -> None:
        """The states that modules ask for, all of them nothing, and the index."""
        nothing = self._item(lambda out: torch.save([None], out))
        layers = self.arch.layers
        names = [f"decoder.layers.{m}._extra_state/shard_{i}_{layers}" for m in STATES for i in range(layers)]
        for name in names:
            self.tensors[name] = BytesStorageMetadata()
            self.places[MetadataIndex(name)] = nothing
        metadata = Metadata(self.tensors, None, self.places, None, "1.0.0")
        write_file(self.folder / METADATA, pickle.dumps(metadata))


def _common(
    config: Any, progress: Any, arguments: dict[str, Any], iteration: int, step: int, moments: bool
) -> dict[str, Any]:
    """common.pt: the arguments, and of the optimizer what is no tensor."""
    train = config.get("train", {})
    lr, decay = train.get("lr", 0.0), train.get("weight_decay", 0.0)
    seq_len = train.get("seq_len") or arguments.get("max_position_embeddings") or 2048
    samples = progress.get("tokens", 0) // seq_len
    args = {
        "max_position_embeddings": seq_len,
        **arguments,
        "seq_length": seq_len,
        "add_position_embedding": True,
        "make_vocab_size_divisible_by": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "world_size": 1,
        "data_parallel_size": 1,
        "params_dtype": torch.float32,
        "ckpt_format": "torch_dist",
        "use_distributed_optimizer": True,
        "no_save_optim": not moments,
        "no_save_rng": True,
        "iteration": iteration,
        "consumed_train_samples": samples,
        "consumed_valid_samples": 0,
    }
    common: dict[str, Any] = {
        "args": argparse.Namespace(**args),
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "content_metadata": {
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
        },
    }
    if not moments:
        return common
    constants = {
        "lr": lr,
        "max_lr": lr,
        "min_lr": train.get("min_lr", 0.0),
        "eps": train.get("eps", 1e-8),
        "step": step,
    }
    constants |= {"betas": tuple(train.get("betas", (0.9, 0.95))), "lr_mult": 1.0, "bias_correction": True}
    flags = {"is_expert_parallel": False, "is_decoupled_lr": False, "default_config": True}
    groups = [{**flags, **constants, "wd_mult": mult, "weight_decay": decay * mult} for mult in (1.0, 0.0)]
    inner = {"state": {"common_step": torch.tensor(float(step))}, "param_groups": groups}
    # An optimizer in fp32 has these by themselves, others in a dict of their own.
    common["optimizer"] = {**inner, "optimizer": inner, "param_state_sharding_type": "fully_reshardable"}
    common["opt_param_scheduler"] = {
        "max_lr": lr,
        "min_lr": train.get("min_lr", 0.0),
        "lr_warmup_steps": 0,
        "lr_decay_steps": max(samples, 1),
        "lr_decay_style": "constant",
        "num_steps": samples,
        "start_wd": decay,
        "end_wd": decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": max(samples, 1),
    }
    return common

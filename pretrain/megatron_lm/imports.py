"""A checkpoint of another stack as the finished first stage of a run, with its moments: a run to be grown here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box, Generations
from pretrain.checkpoint import Manifest, step_folder, write_checkpoint
from pretrain.checkpoint.find import steps
from pretrain.errors import UserError
from pretrain.hf.imports import finished, same, vocabulary_of
from pretrain.hf.rows import reordered
from pretrain.megatron_lm.folders import opened
from pretrain.megatron_lm.source import Opened
from pretrain.runtime.documents import finite
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State


@dataclass(frozen=True)
class Imported:
    """What `import_megatron` made. existed: whether it was there already. See Opened for the other fields.

    vocabulary: {"order": "merge age" | "identity", "tokenizer": its hash or None, "reason": why identity}.
    """

    checkpoint: Path
    existed: bool
    format: str
    parameters: int
    bytes: int
    iteration: int
    step: int
    moments: bool
    optimizer: Mapping[str, Any]
    vocabulary: Mapping[str, Any]


def import_megatron(
    folder: Path,
    stage: Path,
    *,
    args: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
    vocab: int | None = None,
    moments: bool = True,
    progress: bool = False,
) -> Imported:
    """Make `stage` (runs/NAME/STAGE) the finished stage that holds the checkpoint in `folder`.

    args: arguments of Megatron-LM, beside or instead of those in the checkpoint. tokenizer: a folder with the files of
    the tokenizer. vocab: rows of the vocabulary that are kept (None: all, padding too). Tensors are read a piece at a
    time; stopped and called again, it goes on. Raises UserError for whatever cannot be taken over.
    """
    target = step_folder(stage / "checkpoints", 0)
    if others := [path for path in steps(stage / "checkpoints") if path != target]:
        raise UserError(f"{stage} is a stage that has begun already ({others[0].name}): name another one")
    checkpoint = opened(folder, args, moments)
    source, arch = checkpoint.source, cut(checkpoint.source.arch, vocab)
    vocabulary, rows = _vocabulary(tokenizer, arch)
    event = {
        "stage": stage.name,
        "imported": {
            "name": folder.resolve().name,
            "config": _facts(checkpoint),
            "dtypes": sorted(source.dtypes),
            "files": source.identity(),
            "vocabulary": vocabulary,
        },
    }
    manifest = same(target, event)
    existed = manifest is not None
    if manifest is None:
        source.check_finite(progress)
        manifest = _write(target, stage.name, checkpoint, arch, rows, event, progress)
    finished(tokenizer, stage, manifest, event)
    return Imported(
        target,
        existed,
        checkpoint.format,
        arch.parameters(),
        manifest.size,
        checkpoint.iteration,
        checkpoint.step,
        len(source.kinds) > 1,
        checkpoint.optimizer,
        vocabulary,
    )


def cut(arch: Architecture, vocab: int | None) -> Architecture:
    """The model with the first rows of its vocabulary. Raises UserError for more than there are."""
    if vocab is None:
        return arch
    if not 0 < vocab <= arch.sizes["vocab"]:
        raise UserError(f"--vocab {vocab}: the model has {arch.sizes['vocab']} rows, with padding")
    return arch.replace({"vocab": vocab})


def _vocabulary(tokenizer: Path | None, arch: Architecture) -> tuple[dict[str, Any], Any]:
    if tokenizer is None:
        return {"order": "identity", "tokenizer": None, "reason": "no --tokenizer was given"}, None
    return vocabulary_of(tokenizer, arch)


def _facts(checkpoint: Opened) -> dict[str, Any]:
    """What is recorded of where it came from: plain values of its arguments, and how far its run was."""
    simple = {key: finite(value) for key, value in checkpoint.args.items() if type(value) in (str, int, float, bool)}
    return {**simple, "format": checkpoint.format, "iteration": checkpoint.iteration}


def _write(
    target: Path,
    stage: str,
    checkpoint: Opened,
    arch: Architecture,
    rows: Any,
    event: dict[str, Any],
    progress: bool,
) -> Manifest:
    source, tensors = checkpoint.source, arch.tensors()
    state = State(arch, Generations.first(arch), (Birth(0, stage, checkpoint.step),), Progress(), None, (event,))

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return reordered(lambda box: source.read(kind, name, box), tensors[name], rows, box)

    fields = state.fields(stage, {}, [checkpoint.step])
    return write_checkpoint(target, 0, source.kinds, read, fields, event, progress=progress)

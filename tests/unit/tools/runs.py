"""Checkpoints for the tools to work on: random weights and moments (nothing is at its init), and changed copies."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box, Generations
from pretrain.checkpoint import KINDS, Reader, write_checkpoint
from pretrain.config import Curriculum, Stage
from pretrain.data.corpus.corpus import Corpus
from pretrain.families.text import open_feed
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State


@dataclass(frozen=True)
class Run:
    """curriculum: stages "small" (done), "large" (wider, deeper, more vocabulary) and "finer" (longer heads too), both
    not begun."""

    curriculum: Curriculum
    corpus: Corpus

    @property
    def config(self) -> str:
        return str(self.curriculum.path)

    @property
    def folder(self) -> Path:
        return self.curriculum.folder

    @property
    def parent(self) -> Path:
        return self.folder / "small" / "checkpoints" / "step-00000020"


def save(stage: Stage, path: Path, seed: int = 0) -> None:
    """A checkpoint of a stage after 20 steps."""
    arch = stage.model.architecture()
    scalars = {"norm_eps": 1e-3, "rope_theta": 500.0}  # not the defaults, and not negligible
    arch = arch.replace(scalars={name: value for name, value in scalars.items() if name in arch.scalars})
    values = random_model(arch, seed)
    feed = open_feed(stage)
    feed.seek(None)
    births = (Birth(0, stage.name, 20),)
    state = State(arch, Generations.first(arch), births, Progress(20, 2560, 2560, 1e9), feed.cursor)
    fields = state.fields(stage.name, stage.to_dict(), [20])
    write_checkpoint(path, 20, list(KINDS), lambda kind, name, box: values[kind, name][box.slices()], fields, {})


def random_model(arch: Architecture, seed: int = 0) -> dict[tuple[str, str], torch.Tensor]:
    """Every parameter and moment drawn, gains around 1, spans above 0; weights large enough that nothing is linear."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, tensor in arch.tensors().items():
        for kind in KINDS:
            value = torch.randn(tensor.shape, generator=generator) * 0.2
            if kind == "exp_avg_sq":
                value = value.square()
            elif kind == "weight" and tensor.spec.init == "one":
                value = 1 + value
            elif kind == "weight" and name.endswith(".span"):
                value = value.abs()
            values[kind, name] = value
    return values


def rewrite(
    source: Path,
    target: Path,
    change: dict[tuple[str, str], torch.Tensor],
    events: tuple[Mapping[str, Any], ...] | None = None,
    rope_frequencies: tuple[float, ...] | None = None,
    **scalars: float,
) -> None:
    """A copy of a checkpoint with some tensors, events, frequencies and scalars changed: its files are as sound as
    any."""
    with Reader(source) as reader:
        state = State.from_reader(reader)
        arch = state.arch.replace(scalars=scalars, rope_frequencies=rope_frequencies)
        state = replace(state, arch=arch, events=events or state.events)
        m = reader.manifest
        fields = state.fields(m.stage, m.config, [b.adam_step for b in state.births])

        def read(kind: str, name: str, box: Box) -> torch.Tensor:
            if (kind, name) in change:
                return change[kind, name][box.slices()]
            return reader.read(kind, name, box)

        write_checkpoint(target, m.step, list(KINDS), read, fields, {})

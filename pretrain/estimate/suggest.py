"""Which layouts of a stage fit its GPUs, fastest first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from growth import Architecture
from pretrain.config import Train
from pretrain.config.layouts import misfits
from pretrain.estimate import memory, speed
from pretrain.estimate.memory import Memory
from pretrain.estimate.speed import Gpu, Speed
from pretrain.estimate.teaching import Taught
from pretrain.layout import Layout, balanced_pipeline
from pretrain.layout.work import totals

POWERS = (1, 2, 4, 8, 16, 32, 64)
RECOMPUTE: tuple[Literal["none", "full"], ...] = ("none", "full")
"""Recomputation to suggest; "selective" frees next to nothing, since a fused attention never saves its scores."""
ROOM = 0.9
"""The share of a GPU's memory that a suggestion fills at most, since what the allocator cannot use is a guess."""
ENOUGH = 16_384
"""Tokens of a micro-batch beyond which matrix products do not get faster."""


@dataclass(frozen=True)
class Suggestion:
    """A layout with its micro-batch and recomputation, its memory and its estimated speed."""

    layout: Layout
    train: Train
    memory: Memory
    speed: Speed


def suggest(
    arch: Architecture,
    train: Train,
    gpu: Gpu,
    *,
    world: int,
    before: Sequence[Architecture] = (),
    taught: Taught | None = None,
    gpus_per_node: int = 8,
) -> list[Suggestion]:
    """The layouts of `world` GPUs that fit, each with its best micro-batch; fastest first, simpler within 0.01 of MFU.

    before: what grows into the model in the stage, see memory.growing. taught: what it learns from, without pipelines.
    Tensor parallelism stays within a node and has sequence parallelism; pipelines are balanced, with one chunk a rank
    or interleaved.
    """
    best = []
    for layout in _layouts(arch, train, world, gpus_per_node):
        if taught and layout.pp > 1:
            continue
        fitting = []
        for micro_batch in POWERS:
            if any(misfits(replace(train, micro_batch=micro_batch), layout)):
                continue
            for recompute in RECOMPUTE:
                settings = replace(train, micro_batch=micro_batch, recompute=recompute, recompute_layers=1)
                need = memory.worst(arch, layout, settings, before=before, taught=taught)
                if need.total <= ROOM * gpu.memory:
                    step_speed = speed.of_step(arch, layout, settings, gpu, gpus_per_node=gpus_per_node)
                    fitting.append(Suggestion(layout, settings, need, step_speed))
                    break
        best += sorted(fitting, key=_rank)[:1]
    return sorted(best, key=_rank)


def _rank(suggestion: Suggestion) -> tuple[float, ...]:
    layout, tokens = suggestion.layout, suggestion.train.micro_batch * suggestion.train.seq_len
    return (-round(suggestion.speed.mfu, 2), layout.tp * layout.pp, layout.virtual, -min(tokens, ENOUGH), tokens)


def _layouts(arch: Architecture, train: Train, world: int, gpus_per_node: int) -> Iterator[Layout]:
    sizes, work = arch.sizes, totals(arch, train.seq_len)
    cut = (sizes["heads"], sizes.get("kv_heads", sizes["heads"]), sizes["ffn"], train.seq_len)
    for tp in POWERS:
        if tp > gpus_per_node or any(size % tp for size in cut):
            continue
        for pp in POWERS:
            if world % (tp * pp) or pp > arch.depth:
                continue
            for virtual in (1, 2, 4) if pp > 1 else (1,):
                if pp * virtual <= arch.depth:
                    chunks = balanced_pipeline(work, pp * virtual)
                    dp = world // (tp * pp)
                    yield Layout.make(work, tp=tp, pp=pp, dp=dp, pipeline=chunks, sequence_parallel=True)

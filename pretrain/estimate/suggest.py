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
from pretrain.layout import Layout, balanced_pipeline

POWERS = (1, 2, 4, 8, 16, 32, 64)
RECOMPUTE: tuple[Literal["none", "full"], ...] = ("none", "full")
"""Selective recomputation frees next to nothing: a fused attention never keeps its scores."""
ROOM = 0.9
"""Share of a GPU that a suggestion fills at most, since activations are known to 15 %."""
ENOUGH = 16_384
"""Tokens of a micro-batch beyond which matrix products do not get faster."""


@dataclass(frozen=True)
class Suggestion:
    """A layout with its micro-batch and recomputation, what it needs and how fast it is reckoned to be."""

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
    gpus_per_node: int = 8,
) -> list[Suggestion]:
    """The layouts of `world` GPUs that fit, each with its best micro-batch; fastest first, simpler within 0.01 of MFU.

    before: what grows into the model in the stage, see memory.growing. Tensor parallelism stays within a node and has
    sequence parallelism; pipelines are balanced, plain or interleaved.
    """
    best = []
    for layout in _layouts(arch, train, world, gpus_per_node):
        found = []
        for micro_batch in POWERS:
            if any(misfits(replace(train, micro_batch=micro_batch), layout)):
                continue
            for recompute in RECOMPUTE:
                how = replace(train, micro_batch=micro_batch, recompute=recompute, recompute_layers=1)
                need = memory.worst(arch, layout, how, before=before)
                if need.total <= ROOM * gpu.memory:
                    how_fast = speed.of_step(arch, layout, how, gpu, gpus_per_node=gpus_per_node)
                    found.append(Suggestion(layout, how, need, how_fast))
                    break
        best += sorted(found, key=_worse)[:1]
    return sorted(best, key=_worse)


def _worse(one: Suggestion) -> tuple[float, ...]:
    layout, tokens = one.layout, one.train.micro_batch * one.train.seq_len
    return (-round(one.speed.mfu, 2), layout.tp * layout.pp, layout.virtual, -min(tokens, ENOUGH), tokens)


def _layouts(arch: Architecture, train: Train, world: int, gpus_per_node: int) -> Iterator[Layout]:
    sizes, layers = arch.sizes, arch.sizes["layers"]
    cut = (sizes["heads"], sizes.get("kv_heads", sizes["heads"]), sizes["ffn"], train.seq_len)
    for tp in POWERS:
        if tp > gpus_per_node or any(size % tp for size in cut):
            continue
        for pp in POWERS:
            if world % (tp * pp) or pp > layers:
                continue
            for virtual in (1, 2, 4) if pp > 1 else (1,):
                if pp * virtual <= layers:
                    chunks = balanced_pipeline(layers, pp * virtual)
                    dp = world // (tp * pp)
                    yield Layout.make(layers, tp=tp, pp=pp, dp=dp, pipeline=chunks, sequence_parallel=True)

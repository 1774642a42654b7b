"""Time, storage and money of a stage, worked out before its first GPU hour."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from growth import Architecture
from growth.learn import with_axes
from pretrain.config import LEARNED, Curriculum, Stage
from pretrain.config.layouts import layout_of, ranks_of
from pretrain.data.packing import Packed
from pretrain.errors import UserError
from pretrain.estimate import flops, memory, speed, teaching
from pretrain.estimate.memory import Memory
from pretrain.estimate.speed import Gpu, Speed
from pretrain.estimate.teaching import Taught
from pretrain.families.text import packings
from pretrain.layout import Layout
from pretrain.layout.work import totals

STORED_BYTES = 12
"""Bytes of a parameter in a checkpoint: its weight and two moments in fp32; an average takes as much as a weight."""
STORAGE = 2e9
"""Bytes a second that a node is assumed to read from or write to the shared file system."""
HOST = 10e9
"""Bytes a second from a GPU to its host, where a checkpoint is copied to be written while training goes on."""


def stored_bytes(stage: Stage) -> int:
    """Bytes of a parameter in the checkpoints of a stage."""
    return STORED_BYTES + 4 * bool(stage.train.average.half_life)


@dataclass(frozen=True)
class Cost:
    """What one stage costs on one layout. Times are in seconds."""

    stage: Stage
    arch: Architecture
    """The architecture at the end of the stage."""
    before: Sequence[Architecture]
    """What grows into it in the stage, see memory.growing."""
    taught: Taught | None
    """What it holds of its teacher."""
    packings: Mapping[str, Packed]
    """What becomes of its documents by each data.packing; empty where its corpus is not there."""
    layout: Layout
    nodes: int
    memory: Memory
    """The memory of a rank of the pipeline rank that needs most."""
    speed: Speed
    """The speed at the end of the stage."""
    share: float
    """The FLOPs of the stage as a share of what they would be with all patches from the beginning."""
    flops: float
    """Model FLOPs of the whole stage, its growth event included."""
    hardware_flops: float
    """The hardware FLOPs: with all that is computed again."""
    event: float
    """Seconds of the growth event: to read the parent's checkpoint, and to certify; 0 for a first stage."""
    stall: float
    """Seconds that training stands still at each checkpoint."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step after the ramp."""
        return self.stage.train.global_batch * self.stage.train.seq_len

    @property
    def seen(self) -> float | None:
        """Of how many tokens attention sees a part, see flops.forward: in full where the corpus is not there."""
        return _seen(self.stage, self.packings)

    @property
    def tokens_per_second(self) -> float:
        return self.batch_tokens / self.speed.seconds

    @property
    def saves(self) -> int:
        """How many checkpoints the stage saves."""
        return -(-self.stage.train.steps() // self.stage.checkpoint.interval)

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return stored_bytes(self.stage) * self.arch.parameters() + memory.stored(self.arch, self.stage.train)

    @property
    def seconds(self) -> float:
        return self.share * self.stage.train.tokens / self.tokens_per_second + self.event + self.saves * self.stall

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.layout.world / 3600


def of_stage(
    stage: Stage,
    parent: Stage | None,
    *,
    gpu: Gpu,
    taught: Taught | None = None,
    gpus_per_node: int = 8,
    nodes: int | None = None,
    mfu: float | None = None,
) -> Cost:
    """The cost of a stage.

    taught: what it learns from, for which it takes as much longer as its FLOPs are more. nodes: how many the stage gets
    where its `parallel.dp` is absent (default: as many as hold one model replica). Raises UserError when the ranks or
    the batch do not fit together, or the budget is in epochs.
    """
    if not stage.train.tokens:
        raise UserError(
            f"stage {stage.name!r}: train.epochs is of a corpus; the plan reads none, so give train.tokens instead"
        )
    arch, train = stage.grown(), stage.train
    fixed = flops.fixed(arch, train.lora)
    world = nodes * gpus_per_node if nodes else ranks_of(stage, gpus_per_node)
    layout = layout_of(stage, world, arch)
    packed = packings(stage)
    seen = _seen(stage, packed)
    step_speed = speed.of_step(arch, layout, train, gpu, gpus_per_node=gpus_per_node, mfu=mfu, seen=seen)
    node_count = -(-layout.world // gpus_per_node)
    ran = flops.expected(arch, train)
    flops_per_token = flops.training_flops(arch, train.seq_len, frozen=fixed, ran=ran, seen=seen)
    extra, in_sight = 0.0, 0
    if taught:
        extra = teaching.teaching_flops(arch, taught, train.seq_len, layout.tp, seen)
        in_sight = taught.in_sight(arch)
    step_speed = replace(step_speed, seconds=step_speed.seconds * (1 + extra / flops_per_token))
    event = event_flops = learning = 0.0
    if parent:
        old = parent.grown()
        event_flops = flops.event_flops(old, arch, layout, train.seq_len, train.micro_batch)
        if keys := stage.grow.learn.keys(old, arch) if stage.grow.learn.steps else []:
            learned = with_axes(arch, ["head_dim"], old) if "heads" in keys else arch
            unlearned = with_axes(learned, [axis for key in keys for axis in LEARNED[key]], old)
            learning = flops.learning_flops(unlearned, learned, train.seq_len, stage.grow.learn)
        # The weights for the certificate's first half; then all of it twice, since the certificate's step is undone.
        read = (4 + 2 * STORED_BYTES) * old.parameters() / (STORAGE * node_count)
        steps = event_flops / flops_per_token / train.seq_len / train.global_batch
        event = read + steps * step_speed.seconds
    share = _share(stage)
    before = memory.growing(stage, parent)
    hardware_flops = flops.hardware_flops(
        arch,
        train.seq_len,
        recompute=train.recompute,
        tp=layout.tp,
        frozen=fixed,
        ran=ran,
        in_sight=in_sight,
        seen=seen,
    )
    return Cost(
        stage=stage,
        arch=arch,
        before=before,
        packings=packed,
        layout=layout,
        nodes=node_count,
        memory=memory.worst(arch, layout, train, before=before, taught=taught),
        speed=step_speed,
        share=share,
        taught=taught,
        flops=(flops_per_token + extra) * train.tokens * share + event_flops + learning,
        hardware_flops=(hardware_flops + extra) * train.tokens * share + event_flops + learning,
        event=event,
        stall=(stored_bytes(stage) * arch.parameters() + memory.stored(arch, train)) / layout.world / HOST,
    )


def _seen(stage: Stage, packed: Mapping[str, Packed]) -> float | None:
    train, seen = stage.train, packed[stage.data.packing].seen if stage.data.reset_attention and packed else None
    if not train.memory:
        return seen
    seen = float(train.seq_len) if seen is None else seen
    return seen + train.memory * seen / train.seq_len


def _share(stage: Stage) -> float:
    bounds = [0.0, *(patch.at for patch in stage.patches), 1.0]
    stages = [replace(stage, patches=stage.patches[:n]) for n in range(len(bounds) - 1)]
    shapes = [s.grown() for s in stages]
    flops_by_depth = [
        flops.training_flops(shape, stage.train.seq_len, ran=flops.expected(shape, stage.train)) for shape in shapes
    ]
    return (
        sum((b - a) * f for (a, b), f in zip(itertools.pairwise(bounds), flops_by_depth, strict=True))
        / flops_by_depth[-1]
    )


def of_curriculum(
    curriculum: Curriculum, *, gpu: Gpu, gpus_per_node: int = 8, nodes: int | None = None, mfu: float | None = None
) -> list[Cost]:
    """The cost of every stage."""
    return [
        of_stage(
            stage,
            curriculum.parent(stage),
            gpu=gpu,
            taught=teaching.taught(curriculum, stage),
            gpus_per_node=gpus_per_node,
            nodes=nodes,
            mfu=mfu,
        )
        for stage in curriculum.stages
    ]


def from_scratch(costs: list[Cost]) -> tuple[float, float]:
    """(model FLOPs, GPU hours) of training the last model alone on the tokens of all stages, on its layout."""
    last = costs[-1]
    tokens = sum(cost.stage.train.tokens for cost in costs)
    ran = flops.expected(last.arch, last.stage.train)
    flops_in_all = flops.training_flops(last.arch, last.stage.train.seq_len, ran=ran, seen=last.seen) * tokens
    return flops_in_all, tokens / last.tokens_per_second * last.layout.world / 3600


def remedies(cost: Cost, gpu: Gpu) -> list[str]:
    """The single changes that would make a stage fit that does not, in words, each with the memory it then needs."""
    train, layout = cost.stage.train, cost.layout
    tried = []
    if train.micro_batch > 1:
        smaller = max(n for n in range(1, train.micro_batch) if train.micro_batch % n == 0)
        tried.append((f"train.micro_batch {smaller}", layout, replace(train, micro_batch=smaller)))
    tried.append(("train.recompute full", layout, replace(train, recompute="full")))
    sizes = cost.arch.sizes
    heads = (sizes["heads"], sizes.get("kv_heads", sizes["heads"]), sizes["ffn"])
    for tp in (2 * layout.tp, 4 * layout.tp):
        if tp <= 8 and layout.dp % (tp // layout.tp) == 0 and not any(size % tp for size in heads):
            work, dp = totals(cost.arch, train.seq_len), layout.dp * layout.tp // tp
            wide = Layout.make(work, tp=tp, pp=layout.pp, dp=dp, sequence_parallel=True)
            tried.append((f"parallel.tp {tp} with sequence_parallel and dp {wide.dp}", wide, train))
    needs = [
        (words, memory.worst(cost.arch, other, changed, before=cost.before, taught=cost.taught).total)
        for words, other, changed in tried
    ]
    return [f"{words} ({need / 2**30:.0f} GiB)" for words, need in needs if need <= gpu.memory]

"""Time, traffic and storage of a stage, worked out before its first GPU hour."""

from dataclasses import dataclass, replace
from typing import Any

from growth import Architecture
from pretrain.config import Curriculum, Stage
from pretrain.errors import UserError
from pretrain.estimate import memory
from pretrain.estimate.flops import PEAK_FLOPS, training_flops
from pretrain.estimate.memory import Memory
from pretrain.layout import Layout

STORED_BYTES = 12
"""Of a parameter in a checkpoint: weight and two moments in fp32."""
STORAGE = 2e9
"""Bytes a second that a node reads from and writes to the shared file system; an assumption."""
HOST = 10e9
"""Bytes a second from a GPU to its host: a checkpoint is copied there, and written while training goes on."""
EVENT_STEPS = 5
"""Steps' worth of time that a growth event spends on its certificate; an assumption."""


@dataclass(frozen=True)
class Gpu:
    """What the plan knows of a GPU. `memory` is what a process can have, in bytes; `name` as in PEAK_FLOPS."""

    name: str
    memory: int


GPUS = {"a100-80gb": Gpu("A100", 79 << 30), "h100-80gb": Gpu("H100", 79 << 30)}


@dataclass(frozen=True)
class Cost:
    """One stage on one layout. Times are in seconds, traffic in bytes that a GPU sends in an optimizer step."""

    stage: Stage
    arch: Architecture
    layout: Layout
    nodes: int
    memory: Memory
    """Of the pipeline rank that needs most."""
    flops: float
    """Of the whole stage."""
    mfu: float
    """Assumed, pipeline bubble included."""
    bubble: float
    """Share of a step in which a pipeline rank waits."""
    tokens_per_second: float
    nvlink: float
    network: float
    event: float
    """Reading the parent's checkpoint and certifying; 0 for a first stage."""
    stall: float
    """Of training, at each checkpoint."""

    @property
    def seconds(self) -> float:
        return self.stage.train.tokens / self.tokens_per_second + self.event

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.layout.world / 3600


def assumed_mfu(arch: Architecture, layout: Layout) -> float:
    """Model FLOPs utilisation without a pipeline bubble: an assumption, to be replaced by --mfu once measured.

    0.45 at 4,096 hidden channels on a rank, about what Megatron-core with flash attention is reported to reach on
    A100s (Korthikanti et al. 2022, table 5, 22B: 0.42 to 0.44); narrow matrices use less of the GPU.
    """
    width = arch.sizes["hidden"] / layout.tp
    for least, mfu in ((4096, 0.45), (2048, 0.42), (1408, 0.36), (1024, 0.30), (512, 0.20)):
        if width >= least:
            return mfu
    return 0.10


def of_stage(
    stage: Stage,
    parent: Stage | None,
    *,
    gpu: Gpu,
    gpus_per_node: int = 8,
    nodes: int | None = None,
    mfu: float | None = None,
) -> Cost:
    """The cost of a stage.

    nodes: those it gets, where its `parallel.dp` is absent (default: as many as hold one model replica).
    Raises UserError when the ranks or the batch do not fit together.
    """
    arch, train = stage.model.architecture(), stage.train
    layout = _layout(stage, gpus_per_node, nodes)
    micro_batches = train.global_batch // (train.micro_batch * layout.dp)
    bubble = (layout.pp - 1) / (layout.pp - 1 + micro_batches * layout.virtual)
    utilisation = assumed_mfu(arch, layout) * (1 - bubble) if mfu is None else mfu
    peak = PEAK_FLOPS[gpu.name][train.precision]
    flops_per_token = training_flops(arch, train.seq_len)
    tokens_per_second = utilisation * peak * layout.world / flops_per_token
    batch = train.global_batch * train.seq_len
    on_nodes = -(-layout.world // gpus_per_node)
    nvlink, network = _traffic(arch, layout, stage, gpus_per_node)
    event = 0.0
    if parent:
        stored = STORED_BYTES * parent.model.architecture().parameters()
        event = stored / (STORAGE * on_nodes) + EVENT_STEPS * batch / tokens_per_second
    return Cost(
        stage=stage,
        arch=arch,
        layout=layout,
        nodes=on_nodes,
        memory=memory.worst(arch, layout, train, moments_by_generation=parent is not None),
        flops=float(flops_per_token * train.tokens),
        mfu=utilisation,
        bubble=bubble,
        tokens_per_second=tokens_per_second,
        nvlink=nvlink,
        network=network,
        event=event,
        stall=STORED_BYTES * arch.parameters() / layout.world / HOST,
    )


def of_curriculum(
    curriculum: Curriculum, *, gpu: Gpu, gpus_per_node: int = 8, nodes: int | None = None, mfu: float | None = None
) -> list[Cost]:
    """The cost of every stage."""
    parents = [None, *curriculum.stages]
    return [
        of_stage(stage, parent, gpu=gpu, gpus_per_node=gpus_per_node, nodes=nodes, mfu=mfu)
        for parent, stage in zip(parents, curriculum.stages, strict=False)
    ]


def from_scratch(costs: list[Cost]) -> tuple[float, float]:
    """(FLOPs, GPU hours) of training the last model alone on the tokens of all stages, on its layout and MFU."""
    last = costs[-1]
    tokens = sum(cost.stage.train.tokens for cost in costs)
    flops = training_flops(last.arch, last.stage.train.seq_len) * tokens
    return float(flops), tokens / last.tokens_per_second * last.layout.world / 3600


def remedies(cost: Cost, gpu: Gpu) -> list[str]:
    """Single changes of a stage that does not fit that would make it fit, with the memory that is left to need."""
    train, layout = cost.stage.train, cost.layout
    tried: list[tuple[str, Layout, dict[str, Any]]] = []
    if train.micro_batch > 1:
        smaller = max(n for n in range(1, train.micro_batch) if train.micro_batch % n == 0)
        tried.append((f"train.micro_batch {smaller}", layout, {"micro_batch": smaller}))
    tried.append(("train.recompute full", layout, {"recompute": "full"}))
    heads, kv_heads, ffn = (cost.arch.sizes[axis] for axis in ("heads", "kv_heads", "ffn"))
    for tp in (2 * layout.tp, 4 * layout.tp):
        if tp <= 8 and layout.dp % (tp // layout.tp) == 0 and not any(size % tp for size in (heads, kv_heads, ffn)):
            wide = Layout.make(
                cost.arch.sizes["layers"], tp=tp, pp=layout.pp, dp=layout.dp * layout.tp // tp, sequence_parallel=True
            )
            tried.append((f"parallel.tp {tp} with sequence_parallel and dp {wide.dp}", wide, {}))
    found = []
    for words, other, changes in tried:
        need = memory.worst(cost.arch, other, replace(train, **changes)).total
        if need <= gpu.memory:
            found.append(f"{words} ({need / 2**30:.0f} GiB)")
    return found


def _layout(stage: Stage, gpus_per_node: int, nodes: int | None) -> Layout:
    parallel, model = stage.parallel, stage.parallel.tp * stage.parallel.pp
    world = nodes * gpus_per_node if nodes else max(model, gpus_per_node)
    dp = parallel.dp or world // model
    where = f"stage {stage.name!r}"
    if nodes and model * dp != world:
        raise UserError(
            f"{where}: parallel asks for {model * dp} GPUs, and --nodes {nodes} has {world}; change one of them"
        )
    if stage.train.global_batch % (stage.train.micro_batch * dp):
        raise UserError(
            f"{where}: train.global_batch {stage.train.global_batch} is no multiple of train.micro_batch "
            f"{stage.train.micro_batch} x {dp} data-parallel ranks; change one of them"
        )
    return Layout.make(
        stage.model.layers,
        tp=parallel.tp,
        pp=parallel.pp,
        dp=dp,
        pipeline=parallel.pipeline,
        sequence_parallel=parallel.sequence_parallel,
    )


def _traffic(arch: Architecture, layout: Layout, stage: Stage, gpus_per_node: int) -> tuple[float, float]:
    """(bytes over NVLink, bytes over the network) that a GPU sends in a step; ring algorithms."""
    train, hidden = stage.train, arch.sizes["hidden"]
    element = 2 if train.precision == "bf16" else 4
    tokens = train.global_batch * train.seq_len / layout.dp  # through one model replica
    # Two all-reduces a layer forward and two backward, or as many reduce-scatter and all-gather pairs.
    tensor = 4 * 2 * (layout.tp - 1) / layout.tp * element * hidden * tokens * arch.sizes["layers"] / layout.pp
    share = arch.parameters() / (layout.tp * layout.pp)
    around = (layout.dp - 1) / layout.dp
    data = 2 * around * 4 * share + around * element * share  # all-reduce of fp32 gradients, all-gather of weights
    sequence = layout.tp if layout.sequence_parallel else 1
    pipeline = 2 * element * hidden * tokens / sequence * layout.virtual if layout.pp > 1 else 0.0
    crossing = layout.world > gpus_per_node
    return (tensor, data + pipeline) if crossing else (tensor + data + pipeline, 0.0)

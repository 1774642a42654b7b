"""How fast a stage will be: what its ranks send each other, how long pipeline ranks wait, what a GPU reaches.

The utilisation of a GPU is an assumption until it has been measured; everything else follows from shapes.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from growth import Architecture
from pretrain.config import Train
from pretrain.estimate.flops import PEAK_FLOPS, expected, fixed, hardware_flops, training_flops
from pretrain.estimate.memory import count
from pretrain.layout import Layout


@dataclass(frozen=True)
class Gpu:
    """What the plan knows of a GPU and its links.

    name is as in PEAK_FLOPS; memory is what a process can have, in bytes; nvlink and network are bytes a second that it
    sends within its node and to others: four fifths of the links' rate, one network card for each GPU. mfu holds
    (hidden channels, MFU) of models without recomputation or tensor parallelism.
    """

    name: str
    memory: int
    nvlink: float
    network: float
    mfu: tuple[tuple[int, float], ...]


SOURCE = "MosaicML's llm-foundry, scripts/train/benchmarking, sequences of 2,048"
GPUS = {
    "a100-80gb": Gpu(
        "A100",
        79 << 30,
        nvlink=0.8 * 300e9,
        network=0.8 * 25e9,
        mfu=((768, 0.45), (1024, 0.52), (1536, 0.57), (2048, 0.60), (2560, 0.62), (4096, 0.64)),
    ),
    "h100-80gb": Gpu(
        "H100",
        79 << 30,
        nvlink=0.8 * 450e9,
        network=0.8 * 50e9,
        # Those below 1,536 are in proportion to A100's.
        mfu=((768, 0.28), (1024, 0.32), (1536, 0.35), (2048, 0.42), (2560, 0.44), (4096, 0.46)),
    ),
}
"""GPUs by the name that the plan has for them; SOURCE measured the MFU of MPT models of 125M to 7B on eight of them."""
SINGLE = 0.75
"""The share of SOURCE's MFU that is assumed here, until this stack has been measured on a GPU."""
LAUNCH = 5e-4
"""Seconds that a host is assumed to take to launch the kernels of a layer, forward and backward: some 80 of them."""


@dataclass(frozen=True)
class Speed:
    """The speed of one optimizer step at the full batch."""

    mfu: float
    bubble: float
    """The share of the computing time in which a pipeline rank waits."""
    seconds: float
    nvlink: float
    """Bytes that a GPU sends within its node."""
    network: float
    """Bytes that a GPU sends to other nodes."""


def of_step(
    arch: Architecture,
    layout: Layout,
    train: Train,
    gpu: Gpu,
    *,
    gpus_per_node: int = 8,
    mfu: float | None = None,
    seen: float | None = None,
) -> Speed:
    """The speed of a stage. mfu: a measured MFU (with bubble and communication) to use in place of the assumption.
    seen: see pretrain.estimate.flops.forward.

    It is assumed that a GPU computes at `kernels` of its peak, or as fast as kernels are launched if that takes longer;
    the pipeline's bubble and communication are added, since none of it is hidden behind computing.
    """
    micro_batches = train.global_batch // (train.micro_batch * layout.dp)
    bubble = (layout.pp - 1) / (layout.pp - 1 + micro_batches * layout.virtual)
    nvlink, network = traffic(arch, layout, train, gpus_per_node)
    frozen, ran = fixed(arch, train.lora), expected(arch, train)
    per_token = training_flops(arch, train.seq_len, frozen=frozen, ran=ran, seen=seen)
    flops = per_token * train.global_batch * train.seq_len
    peak = PEAK_FLOPS[gpu.name][train.precision] * layout.world
    if mfu is None:
        layers = max(sum(len(part) for _, part in layout.chunks(rank)) for rank in range(layout.pp))
        launching = micro_batches * layers * LAUNCH
        computing = max(flops / (peak * kernels(arch, layout, train, gpu)), launching) / (1 - bubble)
        mfu = flops / peak / (computing + nvlink / gpu.nvlink + network / gpu.network)
    return Speed(mfu, bubble, flops / (peak * mfu), nvlink, network)


def kernels(arch: Architecture, layout: Layout, train: Train, gpu: Gpu) -> float:
    """The MFU of computing alone: `gpu.mfu` for matrices of this width, times SINGLE, less what is recomputed.

    A matrix that tensor parallelism cuts is as wide as the square of its size.
    """
    widths, utilisations = zip(*gpu.mfu, strict=True)
    width = arch.sizes["hidden"] / sqrt(layout.tp)
    measured = float(np.interp(width, widths, utilisations)) * min(1.0, width / widths[0])
    once, recomputed = (
        hardware_flops(arch, train.seq_len, recompute=recompute) for recompute in ("none", train.recompute)
    )
    return SINGLE * measured * once / recomputed


def traffic(arch: Architecture, layout: Layout, train: Train, gpus_per_node: int) -> tuple[float, float]:
    """(bytes within its node, bytes to other nodes) that a GPU sends in a step; ring algorithms."""
    hidden, element = arch.sizes["hidden"], 2 if train.precision == "bf16" else 4
    tokens = train.global_batch * train.seq_len / layout.dp  # per step, through one model replica
    # For each residual branch an all-reduce forward and one backward, which send everything twice, or a reduce-scatter
    # and an all-gather; with sequence parallelism the inputs are gathered once more for the gradients of the weights;
    # recomputed layers send again.
    passes = 4 + (1 if layout.sequence_parallel else 0) + (2 if train.recompute == "full" else 0)
    around = (layout.tp - 1) / layout.tp
    tensor = passes * around * element * hidden * tokens * arch.branches / layout.pp
    share = max(count(arch, layout, rank) for rank in range(layout.pp))
    others = (layout.dp - 1) / layout.dp
    data = 2 * others * 4 * share + others * element * share  # all-reduce of fp32 gradients, all-gather of weights
    sequence = layout.tp if layout.sequence_parallel else 1
    pipeline = 2 * element * hidden * tokens / sequence * layout.virtual if layout.pp > 1 else 0.0
    # Ranks are numbered along tp, then dp, then pp. A ring over the data-parallel ranks of several nodes leaves a node
    # once, over the network cards of all that are in it.
    in_node = max(1, min(layout.dp, gpus_per_node // layout.tp))
    nvlink, network = (tensor, 0.0) if layout.tp <= gpus_per_node else (0.0, tensor)
    if in_node < layout.dp:
        network += data / in_node
    if in_node > 1:
        nvlink += data
    if layout.tp * layout.dp >= gpus_per_node:
        network += pipeline
    else:
        nvlink += pipeline
    return nvlink, network

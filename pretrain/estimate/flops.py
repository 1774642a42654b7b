"""FLOPs of training, counted exactly, and how much of a machine they use.

A multiplication and an addition are two FLOPs: a product of [m, k] and [k, n] is 2 m k n. Every matrix product of
tokens is counted and nothing else; norms, activations, RoPE and softmax are below 1 %. The embedding is a look-up, and
has none; what is made of distances is made once for a micro-batch, however many samples it has, and is not counted.
Attention is counted in full, seq_len keys for every query, as PaLM (Chowdhery et al. 2022, appendix B), Megatron-LM and
torch.utils.flop_counter do, although a causal kernel may skip half of it: MFU then compares across papers. Where
data.reset_attention keeps documents apart, a query has the keys of its document: `seen`, the mean over tokens; and
where heads have spans, those that the longest of its layer reaches, in whole blocks. Keys and values are made of no
more of a memory.

*Model* FLOPs are what the mathematics needs: forward, and twice that backward. *Hardware* FLOPs are what is run: what
is computed again and the padding of the vocabulary included. MFU is of the first, HFU of the second (Korthikanti et
al. 2022, section 6.3).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from growth import Architecture
from growth.learn import map_flops
from pretrain import families
from pretrain.config import Learn, Lora, Train
from pretrain.layout import Layout
from pretrain.layout.work import Seen, Work, work_of

Frozen = Collection[int | str]
"""The parts that are not trained: numbers of layers (with all blocks that call them), "embedding" (a tied head's matrix
with it), "head", and names of rows of the table, for their tensors in all layers."""


def fixed(arch: Architecture, lora: Lora) -> frozenset[int | str]:
    """What a stage does not train beside its adapters, if it has any: the linear layers that these are on, with their
    biases, or all else."""
    if (adapters := arch.adapters) is None:
        return frozenset()
    everything = lora.rest == "freeze"
    adapted = {row.name.removesuffix(".weight") for row in arch.table.tensors if adapters.adapts(row)}
    rows = {
        row.name
        for row in arch.table.tensors
        if row.layered and (everything or not adapted.isdisjoint({row.name, row.name.rpartition(".")[0]}))
    }
    return frozenset(rows | {"embedding", "head"} if everything else rows)


Ran = NDArray[np.float64]
"""In which share of the passes each block ran, where train.layer_drop leaves some out: [blocks, 1], or [blocks, 2] of
its attention and its MLP."""


@dataclass(frozen=True)
class Forward:
    """The FLOPs of one sample's forward pass, by part."""

    blocks: tuple[Work, ...]
    vocabulary: int
    """The head's product with the rows of the vocabulary."""
    head: int
    """What a family's head computes before that product, such as a transform of every token."""

    @property
    def total(self) -> int:
        return sum(block.total for block in self.blocks) + self.vocabulary + self.head


def forward(arch: Architecture, seq_len: int, tp: int = 1, ran: Ran | None = None, seen: Seen = None) -> Forward:
    """FLOPs of a forward pass over one sample of seq_len tokens, over all ranks.

    tp: tensor-parallel ranks, to a multiple of which the vocabulary is padded. ran: see Ran. seen: how many tokens
    attention relates a token with, see pretrain.layout.work.Seen.
    """
    vocabulary = 2 * arch.sizes["hidden"] * -(-arch.sizes["vocab"] // tp) * tp * seq_len
    head = families.of(arch.family).head.flops(arch.sizes, seq_len)
    return Forward(_blocks(arch, seq_len, ran, seen), vocabulary, head)


def _blocks(
    arch: Architecture, seq_len: int, ran: Ran | None, seen: Seen, only: Frozen | None = None
) -> tuple[Work, ...]:
    """The work of each block, or what is of the rows of the table `only`."""
    blocks = work_of(arch, seq_len, only, seen)
    if ran is None:
        return blocks
    return tuple(block.ran(shares[0], shares[-1]) for block, shares in zip(blocks, ran, strict=True))


def training_flops(
    arch: Architecture, seq_len: int, *, frozen: Frozen = (), ran: Ran | None = None, seen: Seen = None
) -> float:
    """Model FLOPs of a training step, per token: nothing that is computed again is counted.

    frozen: parts that need no gradients of their weights, nor of their input if no part before them trains. ran: in
    which share of the passes each block ran. seen: see `forward`.
    """
    forward_flops, resting = forward(arch, seq_len, ran=ran, seen=seen), _blocks(arch, seq_len, ran, seen, frozen)
    return (forward_flops.total + _backward(arch, forward_flops, frozen, resting)[0]) / seq_len


def hardware_flops(
    arch: Architecture,
    seq_len: int,
    *,
    recompute: str = "none",
    tp: int = 1,
    frozen: Frozen = (),
    ran: Ran | None = None,
    seen: Seen = None,
    in_sight: int = 0,
) -> float:
    """Hardware FLOPs of a training step, per token, over all ranks: all matrix products that are run.

    recompute is train.recompute: "selective" computes the attention again, "full" whole layers, before each is
    differentiated, but nothing of the last `in_sight` blocks. Whatever it is, the backward pass of a fused attention
    (flash, memory-efficient) computes q k^T again (Dao et al. 2022, algorithm 4). Of adapters on matrices that are one
    in memory (queries, keys and values) the thin products of each are counted, where one with zeros between them is
    run.
    """
    forward_flops, resting = forward(arch, seq_len, tp, ran, seen), _blocks(arch, seq_len, ran, seen, frozen)
    backward, reached = _backward(arch, forward_flops, frozen, resting)
    recomputed = reached[: max(0, len(reached) - in_sight)]
    again = sum({"none": 0, "selective": b.scores, "full": b.total}[recompute] for b in recomputed)
    again += sum(b.again for b in reached)
    return (forward_flops.total + backward + again) / seq_len


def expected(arch: Architecture, train: Train) -> Ran | None:
    """In which share of the passes each block will run; None: in all."""
    return np.full((arch.depth, 1), 1 - train.layer_drop.p) if train.layer_drop.p else None


def event_flops(old: Architecture, new: Architecture, layout: Layout, seq_len: int, micro_batch: int) -> float:
    """Model FLOPs of a growth event: those of its certificate, since growing itself multiplies no matrices.

    layout: of the new model. Every data-parallel rank computes as many micro-batches as there are pipeline ranks: a
    probe, which is no longer than the old model's positions, once forward and once with gradients through either model,
    and a batch twice with gradients through the new one.
    """
    length, old_dp = min(seq_len, old.sizes.get("positions", seq_len)), layout.of_parent(old, seq_len).dp

    def of_probe(arch: Architecture) -> float:
        return forward(arch, length).total + length * training_flops(arch, length)

    of_new = of_probe(new) + 2 * seq_len * training_flops(new, seq_len)
    return micro_batch * layout.pp * (old_dp * of_probe(old) + layout.dp * of_new)


def learning_flops(old: Architecture, new: Architecture, seq_len: int, how: Learn) -> float:
    """Model FLOPs of learning the maps from one model to the other: passes through the new one, whose weights are made
    of the old ones and differentiated in each step."""
    step = how.batch * seq_len * training_flops(new, seq_len) + 3 * map_flops(old, new)
    return how.steps * step


def _backward(
    arch: Architecture, forward_flops: Forward, frozen: Frozen, resting: Sequence[Work]
) -> tuple[int, list[Work]]:
    """(FLOPs of the backward pass over a sample, the blocks that it goes through). resting: of each block what is of
    rows that are frozen.

    The pass ends at the first part that trains. For a product with weights it computes two, for the gradients of the
    input and of the weights (if they train); for a product of two activations always two.
    """
    reached, blocks, flops = "embedding" not in frozen, list[Work](), 0
    for layer, block, rests in zip(arch.calls, forward_flops.blocks, resting, strict=True):
        trains = layer not in frozen
        reached = reached or trains
        if reached:
            blocks.append(block)
            flops += block.matrices + trains * (block.matrices - rests.matrices) + 2 * block.scores
    tied = arch.table.tied
    trains = "head" not in frozen
    if reached or trains:
        flops += (1 + trains) * forward_flops.head + (
            1 + (("embedding" not in frozen) if tied else trains)
        ) * forward_flops.vocabulary
    return flops, blocks


def mfu(flops_per_token: float, tokens_per_second: float, gpus: int, peak_flops: float) -> float:
    """Utilisation of GPUs: flops_per_token * tokens_per_second / (gpus * peak_flops).

    With the model FLOPs of `training_flops` it is MFU (Chowdhery et al. 2022), with the hardware FLOPs of
    `hardware_flops` HFU. `peak_flops` is one GPU's dense peak, in FLOP/s, of the arithmetic trained in.
    """
    return flops_per_token * tokens_per_second / (gpus * peak_flops)


PEAK_FLOPS = {
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
}
"""Dense peak FLOP/s by the name a GPU gives itself, from NVIDIA's data sheets (fp32 without TF32)."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """The peak of a GPU such as "NVIDIA H100 80GB HBM3"; None where it is not known (a CPU): then there is no MFU."""
    for name, peak in PEAK_FLOPS.items():
        if all(word in device_name for word in name.split()):
            return peak[precision]
    return None

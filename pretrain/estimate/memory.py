"""The bytes that a rank will need, worked out from shapes: it takes no GPU, and no model is built."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, prod

from growth import Architecture
from pretrain.config import Average, Stage, Train
from pretrain.estimate.activations import CHUNK, Shapes
from pretrain.estimate.teaching import Taught
from pretrain.families.parameters import parameters
from pretrain.layout import Layout
from pretrain.layout.work import attending

CONTEXT = 1_500_000_000
"""Bytes of a CUDA context and NCCL's channels, which do not follow from shapes."""
FRAGMENTATION = 0.05
"""The share of allocated memory that the caching allocator is assumed to hold in pieces too small to be used."""


@dataclass(frozen=True)
class Memory:
    """The memory of one rank in bytes, by part."""

    weights: int
    """The model's weights in its working precision."""
    gradients: int
    """The gradients, accumulated in fp32."""
    optimizer: int
    """The ZeRO partition: both moments, the master weights under bf16, their average if there is one, and on a GPU the
    generation of each element."""
    activations: int
    """What is saved for the backward pass, of all micro-batches in flight."""
    workspace: int
    """The largest temporary beside the activations: gradients inside the head or a layer, or a layer computed again."""
    buffers: int
    """Buffers for communication: gathered sequences, and what a pipeline rank sends."""
    event: int
    """What a growth event needs beyond a step: a byte a parameter notes whether a gradient has reached it, while fewer
    micro-batches are in flight. Measuring the model before may need more, since it may be too small to be cut as the
    grown one is."""
    teacher: int = 0
    """The weights of what is held of a teacher, at most."""
    remembered: int = 0
    """What blocks remember of the text before a step, and what they will remember of the step, see train.memory."""
    allowance: int = 0
    """Allowance for the context and for fragmentation, on a GPU."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


_counts: dict[tuple[object, ...], int] = {}


def count(arch: Architecture, layout: Layout, pp_rank: int) -> int:
    """How many parameters each rank of pipeline rank `pp_rank` has, padding included (its tensor-parallel ranks are
    alike)."""
    shape = (arch.family, tuple(sorted(arch.sizes.items())), arch.kinds, arch.calls, arch.adapters)
    key = (*shape, layout.tp, layout.pp, layout.pipeline, pp_rank)
    if key not in _counts:
        _counts[key] = sum(prod(p.shape) for p in parameters(arch, layout, pp_rank, 0))
    return _counts[key]


def of_rank(
    arch: Architecture,
    layout: Layout,
    train: Train,
    pp_rank: int,
    *,
    before: Sequence[Architecture] = (),
    taught: Taught | None = None,
    gpu: bool = True,
) -> Memory:
    """The memory of a rank of pipeline rank `pp_rank` (tensor-parallel and data-parallel ranks are alike).

    before: the models that grow into this one in the stage, see `growing`. taught: what it learns from. gpu: whether
    the rank has a GPU; without one (in the tests) kernels are not compiled unless train.compile says so.
    """
    numel = count(arch, layout, pp_rank)
    share = ceil(numel / (2 * layout.dp)) * 2
    bf16 = train.precision == "bf16"
    weights = numel * (2 if bf16 else 4)
    optimizer = share * ((12 if bf16 else 8) + 4 * bool(train.average.half_life) + (bool(before) and gpu))
    shapes = Shapes.of(arch, layout, train, gpu=gpu)
    micro_batches = train.global_batch // (train.micro_batch * layout.dp)
    in_sight = taught.in_sight(arch) if taught else 0
    activations, workspace = _activations(shapes, train, pp_rank, micro_batches, in_sight)
    buffers, teacher = _buffers(shapes, layout), 0
    if taught:
        own = layout.resized(taught.arch, train.seq_len)
        teacher = (taught.arch.parameters() if taught.whole else count(taught.arch, own, 0)) * (2 if bf16 else 4)
        activations, workspace = _compared(shapes, train, taught, activations, workspace)
        workspace = max(workspace, _computed_whole(shapes, train, taught) - activations)
    remembered = 2 * _remembered(shapes, train, pp_rank, micro_batches)
    allocated = weights + 4 * numel + optimizer + activations + workspace + buffers + teacher + remembered
    event = 0
    if before:  # the certificate's backward passes have pp micro-batches
        activations_of_event, _ = _activations(shapes, train, pp_rank, layout.pp)
        older = [_measured(old, layout, train, pp_rank, gpu) - allocated for old in before]
        logits = _logits(shapes) if pp_rank == layout.pp - 1 else 0
        event = max(0, numel + activations_of_event - activations, logits - activations - workspace, *older)
    allocated += event
    allowance = CONTEXT + int(FRAGMENTATION * allocated) if gpu else 0
    parts = (activations, workspace, buffers, event, teacher, remembered, allowance)
    return Memory(weights, 4 * numel, optimizer, *parts)


def stored(arch: Architecture, train: Train) -> int:
    """Bytes of what lanes remember in a checkpoint, in fp32."""
    return 4 * len(attending(arch)) * train.global_batch * train.memory * arch.sizes["hidden"]


def growing(stage: Stage, parent: Stage | None) -> list[Architecture]:
    """The models that grow in a stage: that of its parent, and its own before its last patch."""
    olds = [parent.grown()] if parent else []
    if stage.patches:
        arch = stage.grown()
        olds.append(arch.replace({"layers": arch.layers - 1}))
    return olds


def _measured(old: Architecture, layout: Layout, train: Train, pp_rank: int, gpu: bool) -> int:
    """Bytes of tensors on the same pipeline rank while a growth event measures the model before it."""
    spread = layout.of_parent(old, train.seq_len)
    train = replace(
        train,
        seq_len=min(train.seq_len, old.sizes.get("positions", train.seq_len)),
        global_batch=train.micro_batch * spread.pp * spread.dp,
        recompute_layers=1,
        average=Average(),
    )
    need = of_rank(old, spread, train, pp_rank, gpu=gpu)
    return need.total - need.allowance


def worst(
    arch: Architecture,
    layout: Layout,
    train: Train,
    *,
    before: Sequence[Architecture] = (),
    taught: Taught | None = None,
    gpu: bool = True,
) -> Memory:
    """The memory of a rank of the pipeline rank that needs most."""
    ranks = (of_rank(arch, layout, train, rank, before=before, taught=taught, gpu=gpu) for rank in range(layout.pp))
    return max(ranks, key=lambda m: m.total)


def _activations(shapes: Shapes, train: Train, pp_rank: int, micro_batches: int, in_sight: int = 0) -> tuple[int, int]:
    """(bytes saved for the backward pass, bytes of the largest temporary) of a rank. in_sight: how many of the last
    blocks are not computed again, whatever train.recompute says of layers."""
    layout, tokens = shapes.layout, shapes.tokens
    kinds = {kind: (shapes.block(kind, train.recompute), shapes.inside_block(kind)) for kind in set(shapes.kinds)}
    blocks = [kinds[kind] for kind in shapes.kinds]
    inside = max((within for _, within in blocks), default=0.0)
    saved = last = 0.0
    for numbers in _in_flight(layout, pp_rank, micro_batches):
        if train.recompute == "full":
            last = sum(blocks[number][0] for number in numbers[len(numbers) - in_sight :]) * tokens
            numbers = numbers[: len(numbers) - in_sight]
            saved += sum(shapes.enters(shapes.kinds[number]) for number in numbers[:: train.recompute_layers]) * tokens
            for first in numbers[:: train.recompute_layers]:
                unit = blocks[first : min(first + train.recompute_layers, numbers.stop)]
                inside = max(inside, sum(each for each, _ in unit) * tokens + max(within for _, within in unit))
        else:
            saved += sum(blocks[number][0] for number in numbers) * tokens
    if pp_rank < layout.pp - 1:
        return int(saved), int(inside)
    # What the head saves is free again before the backward pass reaches the layers.
    head = shapes.head() * tokens + last
    return int(saved + head), int(max(shapes.inside_head(), inside - head))


def _remembered(shapes: Shapes, train: Train, pp_rank: int, micro_batches: int) -> int:
    """Bytes of what the blocks of a rank remember of so many micro-batches."""
    blocks = [shapes.kinds[number] for _, numbers in shapes.layout.chunks(pp_rank) for number in numbers]
    lanes = micro_batches * train.micro_batch * sum(map(shapes.attends, blocks))
    return int(shapes.element * shapes.hidden * train.memory * lanes)


def _compared(shapes: Shapes, train: Train, taught: Taught, activations: int, workspace: int) -> tuple[int, int]:
    """(bytes saved for the backward pass, bytes of the largest temporary) with a teacher, from those without one.

    What is compared has temporaries of its own: of words logarithms of either side and a probability, in fp32, and
    their difference as it is differentiated; of some heads at a time scores and relations of either side, in fp32. Of
    that difference, or of the gradients that come of it, is kept what the backward pass needs. Where the labels have no
    share, a student of relations has no head, and of its last block nothing behind queries, keys and values.
    """
    element, tokens = shapes.element, shapes.tokens
    side = 12 + (element if element < 4 else 0)
    if taught.distill.kind == "logits":
        logits = tokens * shapes.vocabulary
        return activations + int(element * logits), max(workspace, int((side + element) * logits))
    head = int(shapes.head() * tokens)
    kept = int(2 * taught.relations * element * shapes.queries * tokens)
    pairs = tokens * train.seq_len
    heads = min(taught.heads // shapes.layout.tp, max(1, CHUNK // pairs))
    compared = (16 * heads + 5) * pairs  # 5: what is hidden
    if taught.distill.share:
        return activations + kept, max(workspace, compared - head)
    last = shapes.norm() + element * (shapes.hidden + shapes.queries + 2 * shapes.keys)
    unused = head + int((shapes.block(shapes.kinds[-1], train.recompute) - last) * tokens)
    again = tokens if train.recompute == "full" else 0
    inside = max(shapes.inside_block(kind) + again * shapes.block(kind, train.recompute) for kind in shapes.kinds)
    return activations - unused + kept, max(int(inside), compared)


def _computed_whole(shapes: Shapes, train: Train, taught: Taught) -> int:
    """Bytes of the largest temporary of a teacher that transformers computes, before anything of the student is there:
    scores of an attention, with their mask and as weights, or logits of the words and a rank's part of them."""
    sizes = taught.arch.sizes
    attention = 3 * sizes["heads"] * train.seq_len
    logits = 2 * sizes["vocab"] if taught.distill.kind == "logits" else 0
    return int(shapes.element * shapes.tokens * max(attention, logits)) if taught.whole else 0


def _logits(shapes: Shapes) -> int:
    """Bytes of the logits that a certificate compares, as the head gives them and batch by batch, and as those of the
    tensor-parallel ranks are gathered."""
    copies = 2 + (shapes.layout.tp if shapes.layout.tp > 1 else 0)
    return int(copies * shapes.element * shapes.tokens * shapes.vocabulary)


def _buffers(shapes: Shapes, layout: Layout) -> int:
    gathered = shapes.whole if layout.sequence_parallel else 0
    sent = shapes.hidden if layout.pp > 1 else 0
    return int(shapes.element * shapes.tokens * (gathered + sent))


def _in_flight(layout: Layout, pp_rank: int, micro_batches: int) -> Iterator[range]:
    """Yields for each (micro-batch, chunk) whose activations are alive at once the numbers of its blocks.

    This holds for the 1F1B schedules of Megatron-core (Narayanan et al. 2021, section 2.2).
    """
    chunks = [numbers for _, numbers in layout.chunks(pp_rank)]
    if layout.virtual == 1:
        alive = min(layout.pp - pp_rank, micro_batches)
        yield from [chunks[0]] * alive
        return
    ahead = 2 * (layout.pp - pp_rank - 1) + (layout.virtual - 1) * layout.pp + 1
    alive = min(ahead, micro_batches * layout.virtual)
    for index in range(alive):  # pp micro-batches pass a chunk, then the next chunk
        yield chunks[index // layout.pp % layout.virtual]

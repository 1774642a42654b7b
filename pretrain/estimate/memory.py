"""The bytes that a rank will need, worked out from shapes: it takes no GPU, and no model is built."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, inf, prod

from growth import Architecture
from growth.adapters import part_of
from growth.family import DISTANCES
from growth.family import Family as Table
from pretrain import families
from pretrain.config import Average, Stage, Train
from pretrain.estimate.teaching import Taught
from pretrain.families.parameters import parameters
from pretrain.layout import Layout
from pretrain.layout.work import attending

CHUNK = 1 << 24
"""How many logits the cross entropy converts to fp32 at a time where it is not a fused kernel (pretrain.kernels), and
how many elements of relations are compared at a time (pretrain.losses.relations)."""
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
    shapes = _Shapes.of(arch, layout, train, gpu=gpu)
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
        event = max(0, numel + activations_of_event - activations, *older)
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


@dataclass(frozen=True)
class _Shapes:
    """What activations are made of: how many elements of each kind a rank holds for a token, on average.

    table: of the family. kinds: of each block. tokens: of a micro-batch. element: bytes of an element. hidden and
    whole: elements of the residual stream, where sequence parallelism cuts it and where it is gathered.
    transform: see families.Head. fused: whether what lies between matrix products is fused into kernels. fused_norm:
    whether an RMSNorm is at least one operation, which saves only its input (torch on CUDA; on a CPU it saves two fp32
    copies). weights: the attention weights, which are a tensor only with dropout on a CPU. scores: what distances add
    to scores, where attention goes by them; bare: whether torch has no kernel that takes this, as on a CPU, so that the
    weights are a tensor. relu: see families.Family. dropout: whether branches have one, so that their gradient is not
    that of the stream. adapters: by kind of block, how many numbers theirs make of a token between their two factors,
    and what they are on. dropped: whether they keep a dropped copy of what enters them. memory: places that are
    remembered, for each token.
    """

    table: Table
    kinds: tuple[str, ...]
    layout: Layout
    tokens: int
    element: int
    hidden: float
    whole: float
    queries: float
    keys: float
    ffn: float
    heads: float
    groups: float
    weights: float
    scores: float
    bare: bool
    relu: bool
    vocabulary: float
    transform: bool
    fused: bool
    fused_norm: bool
    dropout: bool
    adapters: Mapping[str, tuple[int, frozenset[str]]]
    dropped: bool
    memory: float

    @staticmethod
    def of(arch: Architecture, layout: Layout, train: Train, *, gpu: bool) -> "_Shapes":
        size, tp = arch.sizes, layout.tp
        return _Shapes(
            arch.table,
            tuple(block.kind for block in arch.blocks),
            layout,
            tokens=train.micro_batch * train.seq_len,
            element=2 if train.precision == "bf16" else 4,
            hidden=size["hidden"] / (tp if layout.sequence_parallel else 1),
            whole=size["hidden"],
            queries=size["heads"] * size["head_dim"] / tp,
            keys=size.get("kv_heads", size["heads"]) * size["head_dim"] / tp,
            ffn=size["ffn"] / tp,
            heads=size["heads"] / tp,
            groups=size.get("kv_heads", size["heads"]) / tp,
            weights=size["heads"] / tp * train.seq_len if train.attention_dropout and not gpu else 0.0,
            scores=size["heads"] / tp * (train.seq_len + train.memory) if DISTANCES in size else 0.0,
            bare=not gpu,
            relu=families.of(arch.family).relu,
            vocabulary=ceil(size["vocab"] / tp),
            transform=families.of(arch.family).head.transform,
            fused=gpu if train.compile is None else train.compile,
            fused_norm=gpu,
            dropout=train.dropout > 0,
            adapters={kind: _adapters(arch, kind) for kind in set(arch.kinds)},
            dropped=train.lora.dropout > 0,
            memory=train.memory / train.seq_len,
        )

    def at(self, kind: str) -> "_Shapes":
        """What a token is inside a block of this kind: one of its units, where a unit is of several tokens."""
        if kind not in self.table.streams:
            return self
        width, tokens = self.table.through(kind)[0].width, self.table.tokens(kind)
        wider = {name: width * getattr(self, name) for name in ("hidden", "whole", "queries", "keys", "ffn")}
        return replace(self, **wider, tokens=self.tokens // tokens, weights=self.weights / tokens)

    def enters(self, kind: str) -> float:
        """Bytes a token of a sample of the stream in front of a block of this kind."""
        stream = self.table.through(kind)[0]
        return self.element * self.hidden * stream.width / stream.tokens

    def norm(self) -> float:
        """Bytes a token that a norm saves for its backward pass: its input, and its statistics in fp32."""
        parts = self.hidden / self.whole
        if self.table.norm == "rms":
            return (self.element if self.fused or self.fused_norm else 8) * self.hidden + 4 * parts
        return self.element * self.hidden + 8 * parts

    def block(self, kind: str, recompute: str) -> float:
        """Bytes a token that a block saves for its backward pass (after Korthikanti et al. 2022, section 4, with
        flash attention and without masks of dropout, which are drawn again)."""
        if kind in self.table.streams:
            if not self.attends(kind) and not self._has_mlp(kind):
                return self.enters(kind)  # what is between two streams keeps the one that it takes
            return self.at(kind)._block(kind, recompute) / self.table.tokens(kind)
        return self._block(kind, recompute)

    def _block(self, kind: str, recompute: str) -> float:
        numbers, on = self.adapters[kind]
        saved = self.element * numbers + 0.0
        if self.dropped:
            enters = {"attention": self.hidden + self.queries, "mlp": self.hidden + self.ffn}
            saved += self.element * sum(enters[part] for part in on)
        if self.attends(kind):
            # Inputs of the norm and of the matrix after it; queries, keys, values and the output of the attention.
            saved += self.norm() + self.element * self.hidden + self.element * (2 * self.queries + 2 * self.keys)
            if recompute != "selective":
                # The log-sum-exp of each head in fp32; or the attention weights, in fp32 and as dropout leaves them.
                saved += (4 + self.element) * self.weights or 4 * self.heads
                if self.scores and not self.weights:
                    saved += (4 if self.bare else self.element) * self.scores
                if self.scores:  # queries with what is added to them, for keys and for distances, and keys as fp32
                    saved += self.element * self.queries
                    saved += 4 * (self.queries + self.keys) if self.bare else self.element * self.queries
            # Of a memory, which is there anyway, the input of the matrix, keys and values; of kernels queries too.
            saved += self.memory * self.element * (self.hidden + 2 * self.keys + self.fused * self.queries)
            if self.table.head_norms:  # the inputs of their norms, as those of other norms; kernels have the values too
                kept = self.element if self.fused or self.fused_norm else 8
                saved += kept * (self.queries + self.keys) + 4 * (self.heads + self.groups)
                saved += self.element * self.keys * self.fused
            if self.table.rotary and not self.fused:
                saved += self.element * (self.queries + self.keys)  # queries and keys before rotation too
        if self._has_mlp(kind):
            # Inputs of the norm and of the matrix after it. Gated: gate, up and their product; single operations also
            # save silu(gate) and its operand. Otherwise the input and the output of gelu.
            # Of a relu its output alone.
            inside = self.element * self.ffn * ((3 if self.fused else 5) if self.table.gated else 1 if self.relu else 2)
            saved += self.norm() + self.element * self.hidden + inside
        return saved

    def attends(self, kind: str) -> bool:
        """Whether a block of this kind has an attention."""
        return any(dim.role == "query" for row in self.table.rows(kind) for dim in row.dims)

    def _has_mlp(self, kind: str) -> bool:
        return any("ffn" in dim.axes for row in self.table.rows(kind) for dim in row.dims)

    def head(self) -> float:
        """Bytes a token that the last pipeline rank saves beside its layers: for norm, matrix and logits."""
        saved = self.norm() + self.element * self.hidden
        if self.transform:
            saved += 3 * self.element * self.hidden  # of the transform: input and output of gelu, and its norm
            if self.layout.sequence_parallel:
                saved += self.element * self.whole  # gathered for the head that predicts the next sentence
        # The logits of a token, and its label and their maximum and sum.
        return saved + self.element * self.vocabulary + 16

    def inside_head(self) -> float:
        """Bytes of the largest temporary of the head's backward pass: the gradients of its input and of its matrix, or
        the fp32 temporaries of a loss that is not fused, or the logits before a bias is added."""
        gradients = self.element * self.whole * (self.tokens + self.vocabulary)
        logits = min(self.tokens * self.vocabulary, CHUNK if self.element == 2 else inf)
        biased = self.element * self.tokens * self.vocabulary if self.transform else 0
        return max(gradients, biased, 0 if self.fused else 3 * 4 * logits)

    def inside_block(self, kind: str) -> float:
        """Bytes of the largest temporary of a block's backward pass: the gradient of the residual stream, with what the
        second linear layer of the MLP needs or, if it is gated, the gate; without an MLP, what the projections to
        queries, keys and values need."""
        return self.at(kind)._inside(kind)

    def _inside(self, kind: str) -> float:
        mlp = self._has_mlp(kind)
        linear = (self.ffn if mlp else self.queries + 2 * self.keys) * (self.tokens + self.whole)
        gate = (2 if self.fused else 3) * self.ffn * self.tokens if self.table.gated and mlp else 0
        scores = (8 if self.bare else 2 * self.element) * self.scores * self.tokens if self.attends(kind) else 0
        branch = self.hidden * self.tokens if self.dropout else 0
        return self.element * (self.whole * self.tokens + branch + max(linear, gate, scores / self.element))


def _adapters(arch: Architecture, kind: str) -> tuple[int, frozenset[str]]:
    """(numbers between the two factors of the adapters of a block, for a token, and what they are on)."""
    if arch.adapters is None:
        return 0, frozenset()
    parts = [part for row in arch.table.rows(kind) if arch.adapters.adapts(row) and (part := part_of(row))]
    return arch.adapters.rank * len(parts), frozenset(parts)


def _activations(shapes: _Shapes, train: Train, pp_rank: int, micro_batches: int, in_sight: int = 0) -> tuple[int, int]:
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


def _remembered(shapes: _Shapes, train: Train, pp_rank: int, micro_batches: int) -> int:
    """Bytes of what the blocks of a rank remember of so many micro-batches."""
    blocks = [shapes.kinds[number] for _, numbers in shapes.layout.chunks(pp_rank) for number in numbers]
    lanes = micro_batches * train.micro_batch * sum(map(shapes.attends, blocks))
    return int(shapes.element * shapes.hidden * train.memory * lanes)


def _compared(shapes: _Shapes, train: Train, taught: Taught, activations: int, workspace: int) -> tuple[int, int]:
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


def _computed_whole(shapes: _Shapes, train: Train, taught: Taught) -> int:
    """Bytes of the largest temporary of a teacher that transformers computes, before anything of the student is there:
    scores of an attention, with their mask and as weights, or logits of the words and a rank's part of them."""
    sizes = taught.arch.sizes
    attention = 3 * sizes["heads"] * train.seq_len
    logits = 2 * sizes["vocab"] if taught.distill.kind == "logits" else 0
    return int(shapes.element * shapes.tokens * max(attention, logits)) if taught.whole else 0


def _buffers(shapes: _Shapes, layout: Layout) -> int:
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

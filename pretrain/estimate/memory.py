"""Bytes that a rank will need, worked out from shapes: no GPU, no model is built."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, inf, prod

from growth import Architecture
from pretrain import families
from pretrain.config import Stage, Train
from pretrain.families.parameters import parameters
from pretrain.layout import Layout

CHUNK = 1 << 24
"""Logits whose cross entropy is computed at a time, in fp32, where it is no kernel; see pretrain.kernels."""
CONTEXT = 1_500_000_000
"""Of a CUDA context and NCCL's channels, in bytes; not to be had from shapes."""
FRAGMENTATION = 0.05
"""Allowance for what the caching allocator holds in pieces that are too small, of all that it holds."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by part."""

    weights: int
    """Of the model, in its working precision."""
    gradients: int
    """Accumulated in fp32."""
    optimizer: int
    """The ZeRO partition: both moments, the master weights under bf16, and on a GPU the generation of each element."""
    activations: int
    """Kept for the backward pass, of all micro-batches in flight."""
    workspace: int
    """The most that lives for a moment beside them: gradients inside the head or inside a layer, or a layer that is
    computed again."""
    buffers: int
    """Of communication: gathered sequences, and what a pipeline rank sends."""
    event: int
    """What a growth event needs beyond a step: which parameters have been reached by a gradient, a byte for each,
    beside a backward pass that fills a pipeline less; or the model before, where that needs more, since it may be too
    small to be cut as the grown one is."""
    allowance: int = 0
    """Context and fragmentation, on a GPU."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


_counts: dict[tuple[object, ...], int] = {}


def count(arch: Architecture, layout: Layout, pp_rank: int) -> int:
    """Parameters of a rank of a pipeline rank, padding included (its tensor-parallel ranks are alike)."""
    key = (arch.family, tuple(sorted(arch.sizes.items())), layout.tp, layout.pp, layout.pipeline, pp_rank)
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
    gpu: bool = True,
) -> Memory:
    """The memory of a rank of pipeline rank `pp_rank` (tensor-parallel and data-parallel ranks are alike).

    before: the models that grow into this one in the stage, see `growing`. gpu: False is of a process without one, as
    in the tests: there kernels are not compiled unless train.compile says so.
    """
    mine = count(arch, layout, pp_rank)
    share = ceil(mine / (2 * layout.dp)) * 2
    bf16 = train.precision == "bf16"
    weights = mine * (2 if bf16 else 4)
    optimizer = share * ((12 if bf16 else 8) + (bool(before) and gpu))
    shapes = _Shapes.of(arch, layout, train, gpu=gpu)
    micro_batches = train.global_batch // (train.micro_batch * layout.dp)
    activations, workspace = _activations(shapes, train, pp_rank, micro_batches)
    buffers = _buffers(shapes, layout)
    held = weights + 4 * mine + optimizer + activations + workspace + buffers
    event = 0
    if before:  # its backward passes are of as many micro-batches as there are pipeline ranks
        fewer, _ = _activations(shapes, train, pp_rank, layout.pp)
        others = [_measured(old, layout, train, pp_rank, gpu) - held for old in before]
        event = max(0, mine + fewer - activations, *others)
    held += event
    allowance = CONTEXT + int(FRAGMENTATION * held) if gpu else 0
    return Memory(weights, 4 * mine, optimizer, activations, workspace, buffers, event, allowance)


def growing(stage: Stage, parent: Stage | None) -> list[Architecture]:
    """The models that grow in a stage: that of its parent, and its own before its last patch."""
    olds = [parent.at_end().architecture()] if parent else []
    if stage.patches:
        arch = stage.at_end().architecture()
        olds.append(arch.replace({"layers": arch.layers - 1}))
    return olds


def _measured(old: Architecture, layout: Layout, train: Train, pp_rank: int, gpu: bool) -> int:
    """Bytes of tensors while a growth event measures the model before, of the same pipeline rank."""
    spread = layout.of_parent(old)
    train = replace(
        train,
        seq_len=min(train.seq_len, old.sizes.get("positions", train.seq_len)),
        global_batch=train.micro_batch * spread.pp * spread.dp,
        recompute_layers=1,
    )
    need = of_rank(old, spread, train, pp_rank, gpu=gpu)
    return need.total - need.allowance


def worst(
    arch: Architecture, layout: Layout, train: Train, *, before: Sequence[Architecture] = (), gpu: bool = True
) -> Memory:
    """That of the pipeline rank that needs most."""
    ranks = (of_rank(arch, layout, train, rank, before=before, gpu=gpu) for rank in range(layout.pp))
    return max(ranks, key=lambda m: m.total)


@dataclass(frozen=True)
class _Shapes:
    """What activations are made of: bytes of a token's element, and how many elements of each kind a rank holds of it.

    hidden and whole: of the residual stream where sequence parallelism cuts it, and where it is gathered. gated and
    transform: see families.Costs. fused: whether what lies between matrix products is
    kernels; fused_norm: whether an RMSNorm is at least one operation, which keeps its input alone (torch on CUDA; on a
    CPU it keeps two fp32 copies). weights: of an attention, where they are a tensor: with dropout on a CPU. dropout:
    whether branches have one, so that their gradient is not that of the stream.
    """

    layout: Layout
    tokens: int
    element: int
    hidden: float
    whole: float
    queries: float
    keys: float
    ffn: float
    heads: float
    weights: float
    vocabulary: float
    gated: bool
    transform: bool
    fused: bool
    fused_norm: bool
    dropout: bool

    @staticmethod
    def of(arch: Architecture, layout: Layout, train: Train, *, gpu: bool) -> "_Shapes":
        size, tp, costs = arch.sizes, layout.tp, families.of(arch.family).costs
        return _Shapes(
            layout,
            tokens=train.micro_batch * train.seq_len,
            element=2 if train.precision == "bf16" else 4,
            hidden=size["hidden"] / (tp if layout.sequence_parallel else 1),
            whole=size["hidden"],
            queries=size["heads"] * size["head_dim"] / tp,
            keys=size.get("kv_heads", size["heads"]) * size["head_dim"] / tp,
            ffn=size["ffn"] / tp,
            heads=size["heads"] / tp,
            weights=size["heads"] / tp * train.seq_len if train.attention_dropout and not gpu else 0.0,
            vocabulary=ceil(size["vocab"] / tp),
            gated=costs.gated,
            transform=costs.transform,
            fused=gpu if train.compile is None else train.compile,
            fused_norm=gpu,
            dropout=train.dropout > 0,
        )

    def norm(self) -> float:
        """Bytes of a token that a norm keeps: its input and its statistics, in fp32."""
        parts = self.hidden / self.whole
        if self.gated:
            return (self.element if self.fused or self.fused_norm else 8) * self.hidden + 4 * parts
        return self.element * self.hidden + 8 * parts

    def layer(self, recompute: str) -> float:
        """Bytes of a token that a layer keeps for its backward pass (after Korthikanti et al. 2022, section 4, with
        flash attention and without masks of dropout, which are drawn again)."""
        # Both norms and the matrices behind them; queries, keys, values and what the attention makes of them.
        kept = 2 * (self.norm() + self.element * self.hidden) + self.element * (2 * self.queries + 2 * self.keys)
        if recompute != "selective":
            # The log-sum-exp of each, in fp32; or the weights, in fp32 and what is left of them.
            kept += (4 + self.element) * self.weights or 4 * self.heads
        if self.gated and not self.fused:
            kept += self.element * (self.queries + self.keys)  # before rotation too
        # Gate and up in one and their product; single operations also keep silu(gate) and its operand. Or: before and
        # after gelu.
        return kept + self.element * self.ffn * ((3 if self.fused else 5) if self.gated else 2)

    def head(self) -> float:
        """Bytes of a token that the last pipeline rank keeps beside its layers: the norm, the matrix and the logits."""
        kept = self.norm() + self.element * self.hidden
        if self.transform:
            kept += 3 * self.element * self.hidden  # the transform: before and after gelu, and its norm
            if self.layout.sequence_parallel:
                kept += self.element * self.whole  # gathered for the order's head
        # The logits, and of each token its label, their maximum and their sum.
        return kept + self.element * self.vocabulary + 16

    def inside_head(self) -> float:
        """Bytes that live for a moment where the head is differentiated: the gradient of its input and of its matrix;
        or the fp32 temporaries of a loss that is no kernel; or the logits before a bias is added."""
        gradients = self.element * self.whole * (self.tokens + self.vocabulary)
        logits = min(self.tokens * self.vocabulary, CHUNK if self.element == 2 else inf)
        biased = self.element * self.tokens * self.vocabulary if self.transform else 0
        return max(gradients, biased, 0 if self.fused else 3 * 4 * logits)

    def inside_layer(self) -> float:
        """Bytes that live for a moment where a layer is differentiated, at its second linear layer, beside the gradient
        of the stream; or, gated, at the gate's."""
        linear = self.ffn * (self.tokens + self.whole)
        gate = (2 if self.fused else 3) * self.ffn * self.tokens if self.gated else 0
        branch = self.hidden * self.tokens if self.dropout else 0
        return self.element * (self.whole * self.tokens + branch + max(linear, gate))


def _activations(shapes: _Shapes, train: Train, pp_rank: int, micro_batches: int) -> tuple[int, int]:
    """(bytes kept, bytes of the largest temporary)"""
    layout, tokens = shapes.layout, shapes.tokens
    layer = shapes.layer(train.recompute)
    inside = shapes.inside_layer()
    kept = 0.0
    for layers in _in_flight(layout, pp_rank, micro_batches):
        if train.recompute == "full":
            kept += ceil(layers / train.recompute_layers) * shapes.element * shapes.hidden * tokens
            inside = max(inside, min(layers, train.recompute_layers) * layer * tokens + shapes.inside_layer())
        else:
            kept += layers * layer * tokens
    if pp_rank < layout.pp - 1:
        return int(kept), int(inside)
    # The head is done with when the layers are differentiated.
    head = shapes.head() * tokens
    return int(kept + head), int(max(shapes.inside_head(), inside - head))


def _buffers(shapes: _Shapes, layout: Layout) -> int:
    gathered = shapes.whole if layout.sequence_parallel else 0
    sent = shapes.hidden if layout.pp > 1 else 0
    return int(shapes.element * shapes.tokens * (gathered + sent))


def _in_flight(layout: Layout, pp_rank: int, micro_batches: int) -> Iterator[int]:
    """Layers of each (micro-batch, chunk) whose activations are alive at once, in the 1F1B schedules of Megatron-core
    (Narayanan et al. 2021, section 2.2)."""
    chunks = [len(layers) for _, layers in layout.chunks(pp_rank)]
    if layout.virtual == 1:
        alive = min(layout.pp - pp_rank, micro_batches)
        yield from [chunks[0]] * alive
        return
    ahead = 2 * (layout.pp - pp_rank - 1) + (layout.virtual - 1) * layout.pp + 1
    alive = min(ahead, micro_batches * layout.virtual)
    for index in range(alive):  # pp micro-batches of a chunk, then of the next one
        yield chunks[index // layout.pp % layout.virtual]

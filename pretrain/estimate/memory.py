"""Bytes that a rank will need, worked out from shapes: no GPU, no model is built."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import ceil, prod

from growth import Architecture
from pretrain.config import Train
from pretrain.layout import Layout, parameters

REDUCE_ELEMENTS = 500_000_000
"""Elements that DeepSpeed flattens at once to reduce fp32 gradients over data-parallel ranks."""
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
    """The ZeRO partition: both moments, and the master weights under bf16."""
    activations: int
    """Kept for the backward pass, of all micro-batches in flight."""
    workspace: int
    """The largest thing that lives for a moment: logits, or a layer that is computed again."""
    buffers: int
    """Of communication: reduced gradients, gathered sequences, what a pipeline rank sends and receives."""
    event: int
    """At a growth event, beside a backward pass: which parameters have been reached by a gradient, a byte for each."""
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
    arch: Architecture, layout: Layout, train: Train, pp_rank: int, *, grown: bool = False, gpu: bool = True
) -> Memory:
    """The memory of a rank of pipeline rank `pp_rank` (tensor-parallel and data-parallel ranks are alike).

    grown: whether the stage begins with a growth event. gpu: False is of a process without one, as in the tests.
    """
    mine = count(arch, layout, pp_rank)
    share = ceil(mine / (2 * layout.dp)) * 2
    bf16 = train.precision == "bf16"
    weights = mine * (2 if bf16 else 4)
    optimizer = share * (12 if bf16 else 8)
    activations, workspace = _activations(arch, layout, train, pp_rank, fused_norm=gpu)
    buffers = _buffers(arch, layout, train, mine)
    event = mine if grown else 0
    held = weights + 4 * mine + optimizer + activations + workspace + buffers + event
    allowance = CONTEXT + int(FRAGMENTATION * held) if gpu else 0
    return Memory(weights, 4 * mine, optimizer, activations, workspace, buffers, event, allowance)


def worst(arch: Architecture, layout: Layout, train: Train, **how: bool) -> Memory:
    """That of the pipeline rank that needs most."""
    return max((of_rank(arch, layout, train, rank, **how) for rank in range(layout.pp)), key=lambda m: m.total)


def layer_bytes_per_token(arch: Architecture, layout: Layout, train: Train, *, fused_norm: bool) -> float:
    """What one layer keeps of one token for its backward pass (after Korthikanti et al. 2022, section 4, with flash
    attention, single operations for biases and activations, and no dropout).

    fused_norm: RMSNorm keeps its input alone (torch on CUDA); otherwise it keeps two fp32 copies (torch on a CPU).
    """
    size, tp = arch.sizes, layout.tp
    element = _element(train)
    queries = size["heads"] * size["head_dim"] / tp
    keys = size.get("kv_heads", size["heads"]) * size["head_dim"] / tp
    # Both norms and the matrices behind them.
    norms = 2 * (_norm(arch, layout, element, fused_norm) + element * size["hidden"] / _sequence(layout))
    # The fused q k v and the output; the log-sum-exp of each head in fp32.
    attention = element * (2 * queries + 2 * keys)
    if train.recompute != "selective":
        attention += 4 * size["heads"] / tp
    if arch.family == "llama2":
        attention += element * (queries + keys)  # rotated q and k
        mlp = element * 5 * size["ffn"] / tp  # gate and up in one, silu(gate) and its operand, and the product
    else:
        mlp = element * 2 * size["ffn"] / tp  # before and after gelu
    return norms + attention + mlp


def _activations(
    arch: Architecture, layout: Layout, train: Train, pp_rank: int, *, fused_norm: bool
) -> tuple[int, int]:
    """(bytes kept, bytes of the largest temporary)"""
    size, tokens = arch.sizes, train.micro_batch * train.seq_len
    element = _element(train)
    layer = layer_bytes_per_token(arch, layout, train, fused_norm=fused_norm)
    workspace = element * (4 if arch.family == "llama2" else 2) * size["ffn"] / layout.tp
    micro_batches = train.global_batch // (train.micro_batch * layout.dp)
    kept = 0.0
    for layers in _in_flight(layout, pp_rank, micro_batches):
        if train.recompute == "full":
            units = ceil(layers / train.recompute_layers)
            kept += units * element * size["hidden"] / _sequence(layout)
            workspace = max(workspace, min(layers, train.recompute_layers) * layer)
        else:
            kept += layers * layer
    if pp_rank == layout.pp - 1:
        hidden, vocabulary = element * size["hidden"] / _sequence(layout), size["vocab"] / layout.tp
        kept += _norm(arch, layout, element, fused_norm) + hidden
        if arch.family == "bert":
            kept += 3 * hidden  # the transform: before and after gelu, and its norm
        kept += 4 * vocabulary  # the softmax, in fp32
        workspace = max(workspace, element * vocabulary)
    return int(kept * tokens), int(workspace * tokens)


def _buffers(arch: Architecture, layout: Layout, train: Train, mine: int) -> int:
    hidden = _element(train) * arch.sizes["hidden"] * train.micro_batch * train.seq_len  # of one micro-batch
    reduced = 4 * min(mine, REDUCE_ELEMENTS) if layout.dp > 1 and train.precision == "bf16" else 0
    gathered = hidden if layout.sequence_parallel else 0
    sent = 2 * hidden // _sequence(layout) if layout.pp > 1 else 0
    return reduced + gathered + sent


def _element(train: Train) -> int:
    return 2 if train.precision == "bf16" else 4


def _norm(arch: Architecture, layout: Layout, element: int, fused: bool) -> float:
    """What a norm keeps of a token: its input and its statistics, in fp32."""
    hidden = arch.sizes["hidden"]
    if arch.family == "llama2":
        return ((element if fused else 8) * hidden + 4) / _sequence(layout)
    return (element * hidden + 8) / _sequence(layout)


def _sequence(layout: Layout) -> int:
    """Into how many parts the sequence is cut where sequence parallelism cuts it."""
    return layout.tp if layout.sequence_parallel else 1


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

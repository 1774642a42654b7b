"""The bytes of activations for a token, of each kind of block and of the head, worked out from shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf

from growth import Architecture
from growth.adapters import part_of
from growth.family import DISTANCES
from growth.family import Family as Table
from pretrain import families
from pretrain.config import Train
from pretrain.layout import Layout

CHUNK = 1 << 24
"""How many logits the cross entropy converts to fp32 at a time where it is not a fused kernel (pretrain.kernels), and
how many elements of relations are compared at a time (pretrain.losses.relations)."""


@dataclass(frozen=True)
class Shapes:
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
    remembered, for each token. spans: whether heads have spans.
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
    spans: bool

    @staticmethod
    def of(arch: Architecture, layout: Layout, train: Train, *, gpu: bool) -> "Shapes":
        size, tp = arch.sizes, layout.tp
        return Shapes(
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
            spans=arch.span is not None,
        )

    def at(self, kind: str) -> "Shapes":
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
        second linear layer of the MLP needs or, if it is gated, the gate, or with spans their attention; without an
        MLP, what the projections to queries, keys and values need."""
        return self.at(kind)._inside(kind)

    def _inside(self, kind: str) -> float:
        mlp = self._has_mlp(kind)
        linear = (self.ffn if mlp else self.queries + 2 * self.keys) * (self.tokens + self.whole)
        gate = (2 if self.fused else 3) * self.ffn * self.tokens if self.table.gated and mlp else 0
        scores = (8 if self.bare else 2 * self.element) * self.scores * self.tokens if self.attends(kind) else 0
        # Of what is remembered too: gradients of keys and values in fp32, and as they go on.
        each = 8 + 2 * self.element if self.spans and self.attends(kind) else 0
        within = each * self.keys * (1 + self.memory) * self.tokens
        branch = self.hidden * self.tokens if self.dropout else 0
        numbers = max(linear, gate, scores / self.element, within / self.element)
        return self.element * (self.whole * self.tokens + branch + numbers)


def _adapters(arch: Architecture, kind: str) -> tuple[int, frozenset[str]]:
    """(numbers between the two factors of the adapters of a block, for a token, and what they are on)."""
    if arch.adapters is None:
        return 0, frozenset()
    parts = [part for row in arch.table.rows(kind) if arch.adapters.adapts(row) and (part := part_of(row))]
    return arch.adapters.rank * len(parts), frozenset(parts)

"""How much work the blocks of a model are: FLOPs of their matrix products, from the table of its family."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from growth.adapters import part_of
from growth.architecture import Architecture
from growth.family import DISTANCES, TensorSpec
from growth.span import seen as seen_by


@dataclass(frozen=True)
class Work:
    """FLOPs of a block on the way forward, of one sample. A product of [m, k] and [k, n] is 2 m k n."""

    matrices: int
    """All that multiplies a weight."""
    scores: int
    """q k^T, of keys of every kind, and its product with v: of every token with every other one that it may be related
    with."""
    attention: int
    """That part of `matrices` which is the attention's; the rest is of the MLP."""
    again: int
    """What of `scores` the backward pass of a fused attention computes again; 0 where the attention is not fused."""

    @property
    def total(self) -> int:
        return self.matrices + self.scores

    def ran(self, attention: float, mlp: float) -> Work:
        """Of a block whose attention and MLP run in these shares of the passes: the mean, to the nearest FLOP."""
        scores, of_attention = round(attention * self.scores), round(attention * self.attention)
        matrices = of_attention + round(mlp * (self.matrices - self.attention))
        return Work(matrices, scores, of_attention, round(attention * self.again))


Seen = float | Sequence[tuple[float, float]] | None
"""How many tokens attention may relate a token with, in the mean, with a memory more than the sample has; None: all of
the sample. Where heads have spans, those that the longest there may be reaches; or, of each block, how many are reached
and of how many there are keys and values, see growth.span.seen."""


def work_of(
    arch: Architecture, seq_len: int, only: Collection[int | str] | None = None, seen: Seen = None
) -> tuple[Work, ...]:
    """Of each block, for a sample of seq_len tokens, over all tensor-parallel ranks. only: with the matrices of rows of
    these names alone."""
    if not isinstance(seen, Sequence):
        there = seq_len if seen is None else seen
        of_spans = seen_by(arch.span.max, arch.span.ramp, seq_len, there) if arch.span else (there, there)
        seen = [of_spans] * arch.depth
    pairs = list(zip((block.kind for block in arch.blocks), seen, strict=True))
    work = {(kind, n): _of_kind(arch, kind, seq_len, only, *n) for kind, n in set(pairs)}
    return tuple(work[pair] for pair in pairs)


def totals(arch: Architecture, seq_len: int) -> list[int]:
    """All work of each block."""
    return [work.total for work in work_of(arch, seq_len)]


def attending(arch: Architecture) -> list[int]:
    """The numbers of the blocks that have an attention, from 1."""
    return [number for number, block in enumerate(arch.blocks, 1) if _queries(arch, block.kind)]


def entering(arch: Architecture, kind: str, seq_len: int) -> int:
    """FLOPs of the matrices that make queries, keys and values in a block of this kind, on the way forward, of one
    sample."""
    rows = [row for row in arch.table.rows(kind) if len(row.dims) == 2 and "head_dim" in row.dims[0].axes]
    return sum(_flops(arch, row, seq_len // arch.table.tokens(kind), None) for row in rows)


def _flops(arch: Architecture, row: TensorSpec, units: int, only: Collection[int | str] | None) -> int:
    if any(DISTANCES in dim.axes for dim in row.dims):
        return 0  # once for a micro-batch, whatever is in it
    own = arch.adapters.rows(row) if arch.adapters else (row,)
    return sum(
        2 * units * prod(dim.size(arch.sizes) for dim in each.dims)
        for each in own
        if len(each.dims) == 2 and (only is None or each.name in only)
    )


def _queries(arch: Architecture, kind: str) -> int:
    """The width of all queries of a block of this kind; 0 without an attention."""
    first = [row.dims[0] for row in arch.table.rows(kind) if len(row.dims) == 2]
    return sum(dim.size(arch.sizes) for dim in first if dim.role == "query")


def _of_kind(
    arch: Architecture, kind: str, seq_len: int, only: Collection[int | str] | None, seen: float, made: float
) -> Work:
    matrices = attention = 0
    tokens = arch.table.tokens(kind)
    units = seq_len // tokens
    remembered = max(0.0, made / seq_len - 1)  # what there is beyond the sample is of a memory
    for row in arch.table.rows(kind):
        flops = _flops(arch, row, units, only)
        if remembered and len(row.dims) == 2 and "head_dim" in row.dims[0].axes and row.dims[0].role != "query":
            flops += round(remembered * flops)  # keys and values are made of it too
        matrices += flops
        attention += flops if part_of(row) == "attention" else 0
    related = round(units * seen / tokens)
    keys = sum(len(row.dims) == 2 and row.dims[0].role == "key" for row in arch.table.rows(kind))
    product = 2 * _queries(arch, kind) * related  # of q and one kind of keys; as much as that of weights and v
    return Work(matrices, (keys + 1) * product, attention, product if keys == 1 else 0)

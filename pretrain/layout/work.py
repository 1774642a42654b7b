"""How much work the blocks of a model are: FLOPs of their matrix products, from the table of its family."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from growth.architecture import Architecture


@dataclass(frozen=True)
class Work:
    """FLOPs of a block on the way forward, of one sample. A product of [m, k] and [k, n] is 2 m k n."""

    matrices: int
    """All that multiplies a weight."""
    scores: int
    """q k^T, and its product with v: of every token with every other one."""

    @property
    def total(self) -> int:
        return self.matrices + self.scores


def work_of(arch: Architecture, seq_len: int) -> tuple[Work, ...]:
    """Of each block, for a sample of seq_len tokens, over all tensor-parallel ranks."""
    kinds = {kind: _of_kind(arch, kind, seq_len) for kind in set(arch.kinds)}
    return tuple(kinds[block.kind] for block in arch.blocks)


def totals(arch: Architecture, seq_len: int) -> list[int]:
    """All work of each block."""
    return [work.total for work in work_of(arch, seq_len)]


def _of_kind(arch: Architecture, kind: str, seq_len: int) -> Work:
    matrices = sum(prod(dim.size(arch.sizes) for dim in row.dims) for row in arch.rows_of(kind) if len(row.dims) == 2)
    rows = [row for row in arch.table.rows(kind) if len(row.dims) == 2]
    queries = sum(row.dims[0].size(arch.sizes) for row in rows if row.dims[0].role == "query")
    return Work(2 * matrices * seq_len, 2 * 2 * queries * seq_len * seq_len)

"""Attention whose heads learn how far they see (Sukhbaatar et al. 2019, "Adaptive attention span in transformers").

A head has a span z in tokens, and gives a key at distance x the weight m(x) = clip((ramp + z - x) / ramp, 0, 1); the
model's attention is m exp(score) / sum m exp(score). What is stored is z / max, one number a head in [0, 1], which
begins at zero.

No family lists these tensors: they follow from the rows of its table. Along the axis of heads they are writers: the
copies of a head see as far as it does, and new heads see what lies on the ramp alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil
from typing import Any

from growth.errors import GrowthError
from growth.family import DISTANCES, Dim, Family, TensorSpec

NAME = "span"
BLOCK = 64
"""Queries and keys of a block: attention is computed, or left out, in these."""


@dataclass(frozen=True, slots=True)
class Span:
    """`max`: the largest span, in tokens. `ramp`: over how many tokens what a head sees fades behind its span."""

    max: int
    ramp: int

    def check(self, table: Family) -> None:
        """Raise GrowthError unless a model of this family can have these spans."""
        if not all(type(number) is int and number > 0 for number in (self.max, self.ramp)):
            raise GrowthError(
                f"spans of at most {self.max}, with a ramp of {self.ramp}: give two whole numbers above 0"
            )
        if DISTANCES in table.axes or table.streams:
            raise GrowthError(f"{table.name} has an attention of its own, whose heads see all there is; leave it out")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Span:
        return Span(data["max"], data["ramp"])


@cache
def with_spans(table: Family) -> Family:
    """The table of a family whose layers have, before the matrix of their queries, the spans of their heads."""
    rows = []
    for row in table.tensors:
        if row.layered and len(row.dims) == 2 and row.dims[0].role == "query":
            rows.append(TensorSpec(beside(row.name), (Dim(("heads",), "write"),), "zero", row.kinds))
        rows.append(row)
    return replace(table, tensors=tuple(rows))


def beside(query: str) -> str:
    """The name of the spans beside the matrix of queries of a layer (of a row of a table, or of a tensor)."""
    return f"{query.rsplit('.', 2)[0]}.{NAME}"


def reach(longest: float, ramp: int) -> int:
    """The largest distance at which a head of this span, in tokens, sees anything."""
    return ceil(longest + ramp) - 1


def keys_of(longest: float, ramp: int, length: float) -> float:
    """With how many keys, of so many that there are, attention computes for a token in a layer whose longest span this
    is: with those of whole blocks. At the beginning of a sample, as everywhere where FLOPs are counted, a token counts
    as the others do."""
    return min(length, BLOCK + before(longest, ramp))


def before(longest: float, ramp: int) -> int:
    """How many tokens before its own block, in whole blocks, a layer whose longest span this is computes with: keys and
    values are made of no more of a memory."""
    return BLOCK * ceil(reach(longest, ramp) / BLOCK)


def seen(longest: float, ramp: int, own: float, there: float) -> tuple[float, float]:
    """In such a layer, of `there` tokens of which `own` are the sample's, the others of a memory: with how many keys
    attention computes for a token, and of how many tokens keys and values are made."""
    return keys_of(longest, ramp, there), min(there, own + before(longest, ramp))

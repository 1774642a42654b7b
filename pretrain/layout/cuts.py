"""The parts of which every family's table of parameters is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from growth.architecture import Block
from growth.box import Box


@dataclass(frozen=True)
class Piece:
    """A box of a logical tensor and the box of the same shape that it fills in a local parameter."""

    tensor: str
    box: Box
    local: Box


@dataclass(frozen=True)
class Parameter:
    """A parameter as one rank holds it.

    shape is local. Elements that no piece covers are physical padding. dim is the dimension along which tensor
    parallelism cuts it, None where every rank of the group holds it whole; owner tells whether this rank is the one
    that writes it to a checkpoint (another one may hold it too: whole, or as the head's copy of a tied embedding).
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    dim: int | None
    owner: bool


@dataclass(frozen=True)
class Place:
    """What a pipeline chunk of one tensor-parallel rank holds. blocks: those that bring weights, each with its number
    in the chunk: not those whose layer is there already, because an earlier block of this rank calls it too."""

    tp_rank: int
    tp: int
    blocks: tuple[tuple[int, Block], ...]
    first: bool
    last: bool

    def whole(self, name: str, tensor: str, shape: tuple[int, ...]) -> Parameter:
        """A parameter that every tensor-parallel rank holds."""
        box = Box.whole(shape)
        return Parameter(name, shape, (Piece(tensor, box, box),), None, self.tp_rank == 0)

    def rows(self, name: str, tensor: str, shape: tuple[int, ...]) -> Parameter:
        """Cut along dimension 0, the last rank padded: a column-parallel weight or the vocabulary.

        Every rank holds ceil(rows / tp) rows, so that padding rows, if any, come after all real ones.
        """
        n = ceil(shape[0] / self.tp)
        start, stop = min(self.tp_rank * n, shape[0]), min((self.tp_rank + 1) * n, shape[0])
        rest = shape[1:]
        zeros = (0,) * len(rest)
        piece = Piece(tensor, Box((start, *zeros), (stop, *rest)), Box((0, *zeros), (stop - start, *rest)))
        return Parameter(name, (n, *rest), (piece,) if stop > start else (), 0, True)

    def columns(self, name: str, tensor: str, shape: tuple[int, int]) -> Parameter:
        """Cut along dimension 1: a row-parallel weight."""
        n = shape[1] // self.tp
        box = Box((0, self.tp_rank * n), (shape[0], (self.tp_rank + 1) * n))
        return Parameter(name, (shape[0], n), (Piece(tensor, box, Box.whole((shape[0], n))),), 1, True)

    def stacked(self, name: str, parts: Iterable[tuple[str, int, int]], rest: tuple[int, ...]) -> Parameter:
        """Row ranges (tensor, first row, last row + 1) of logical tensors, one under the other."""
        pieces, at, zeros = [], 0, (0,) * len(rest)
        for tensor, a, b in parts:
            pieces.append(Piece(tensor, Box((a, *zeros), (b, *rest)), Box((at, *zeros), (at + b - a, *rest))))
            at += b - a
        return Parameter(name, (at, *rest), tuple(pieces), 0, True)

    def qkv(self, name: str, tensors: tuple[str, str, str], heads: int, groups: int, dim: int, *rest: int) -> Parameter:
        """Megatron's fused `linear_qkv`: per kv group its query heads, then its key, then its value."""
        q, k, v = tensors
        per_group, own = heads // groups * dim, groups // self.tp
        return self.stacked(
            name,
            (
                part
                for g in range(self.tp_rank * own, (self.tp_rank + 1) * own)
                for part in (
                    (q, g * per_group, (g + 1) * per_group),
                    (k, g * dim, (g + 1) * dim),
                    (v, g * dim, (g + 1) * dim),
                )
            ),
            rest,
        )

    def gated(self, name: str, gate: str, up: str, ffn: int, hidden: int) -> Parameter:
        """Megatron's fused `linear_fc1` of a gated MLP: this rank's gate rows, then its up rows."""
        n = ffn // self.tp
        a, b = self.tp_rank * n, (self.tp_rank + 1) * n
        return self.stacked(name, ((gate, a, b), (up, a, b)), (hidden,))

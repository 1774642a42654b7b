"""Where the factors of adapters lie: in the linear layer of what they are on, and cut as that is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from growth.adapters import factors
from growth.architecture import Architecture
from growth.box import Box
from pretrain.layout.cuts import Parameter, Piece


def with_adapters(arch: Architecture, parameters: Iterable[Parameter], tp_rank: int) -> list[Parameter]:
    """The parameters of a chunk, and behind those of each linear layer its adapter's, as modules register them."""
    if arch.adapters is None:
        return list(parameters)
    listed = []
    for _, group in groupby(parameters, key=module_of):
        own = list(group)
        listed += [*own, *(factor for parameter in own for factor in adapter(arch, parameter, tp_rank))]
    return listed


def module_of(parameter: Parameter) -> str:
    """The name of the module that has a parameter."""
    return parameter.name.rpartition(".")[0]


def adapted(arch: Architecture, parameter: Parameter) -> list[str]:
    """The matrices that lie in a parameter and have adapters, in order."""
    return list(dict.fromkeys(piece.tensor for piece in parameter.pieces if arch.adapter(piece.tensor)))


def adapter(arch: Architecture, parameter: Parameter, tp_rank: int) -> list[Parameter]:
    """A and B beside a parameter [out, in]; none where it has no adapter.

    A, [n rank, in], has those of its n matrices (queries, keys and values are three) one under the other. B, [out,
    rank], has in each row what is of that row's matrix. Where tensor parallelism cuts the rows of the parameter, it
    cuts B and every rank has all of A; where it cuts the columns, the other way round.
    """
    matrices = adapted(arch, parameter)
    if not matrices:
        return []
    assert arch.adapters is not None
    rank, (out, into), a, b = arch.adapters.rank, parameter.shape, list[Piece](), list[Piece]()
    for piece in parameter.pieces:
        (of_a, of_b), (columns, rows) = arch.adapter(piece.tensor) or ("", ""), factors(piece.box, rank)
        at = matrices.index(piece.tensor) * rank
        if of_a not in [one.tensor for one in a]:
            a.append(Piece(of_a, columns, Box((at, 0), (at + rank, into))))
        b.append(Piece(of_b, rows, factors(piece.local, rank)[1]))
    name, first = f"{module_of(parameter)}.lora", tp_rank == 0
    cut = parameter.dim
    return [
        Parameter(f"{name}.A", (len(matrices) * rank, into), tuple(a), 1 if cut == 1 else None, cut == 1 or first),
        Parameter(f"{name}.B", (out, rank), tuple(b), 0 if cut == 0 else None, cut == 0 or first),
    ]

"""Adapters of a Megatron-core model: beside its linear layers, whose output they add to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from growth.architecture import Architecture
from pretrain import families
from pretrain.families.common import dropout
from pretrain.kernels.dropout import Dropout, DropPart, drop_part
from pretrain.layout.adapters import adapted, adapter, module_of
from pretrain.layout.cuts import Parameter, Place


def attach(
    chunk: torch.nn.Module, arch: Architecture, numbers: range, tp_rank: int, tp: int, p: float, *, fused: bool
) -> None:
    """Give the linear layers of a pipeline chunk their adapters.

    numbers: of the chunk's blocks in the model. p: the probability with which what enters an adapter is dropped; fused:
    whether by a kernel.
    """
    run = drop_part if fused else drop_part.eager
    for local, number in enumerate(numbers):
        block = Place(tp_rank, tp, ((local, arch.blocks[number]),), first=False, last=False)
        parameters = families.of(arch.family).layout(arch, block)
        for index, weight in enumerate(each for each in parameters if adapted(arch, each)):
            linear = chunk.get_submodule(module_of(weight))
            at = dropout.places(arch.depth) + dropout.LINEARS * number + index
            linear.lora = Lora(arch, weight, tp_rank, linear, partial(dropout.of_adapter, p, at), run)
            linear.register_forward_hook(_add)


def _add(linear: torch.nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]) -> Any:
    return linear.lora(*inputs, output[0]), output[1]  # type: ignore[operator]


class Lora(torch.nn.Module):
    """The adapter of one linear layer: adds alpha / rank * B A x to its output.

    A is [n rank, in] and B [out, rank], as in pretrain.layout.adapters; both of this tensor-parallel rank. What passes
    between ranks is A x alone, n rank numbers a token. Where a rank computes on its part of the sequence, the factor
    that it has all of carries the mark `sequence_parallel`, as norms do.
    """

    own: Tensor | None
    """Of each row of B, 1 where its matrix has its part of A x, [out, n rank]; None where there is one matrix."""

    def __init__(
        self,
        arch: Architecture,
        parameter: Parameter,
        tp_rank: int,
        linear: Any,
        drop: Callable[[int, int], DropPart | None],
        run: Callable[..., Tensor],
    ) -> None:
        """parameter: the weight of the linear layer, in the layout. drop: what is dropped of its input, by the number
        of its first row and that of its first column; run: the kernel that does."""
        super().__init__()
        self.drop, self.run, self.tp_rank = drop, run, tp_rank
        assert arch.adapters is not None
        self.scale, rank = arch.adapters.scale, arch.adapters.rank
        self.cut, self.group, self.sequence_parallel = parameter.dim, linear.tp_group, linear.sequence_parallel
        like = linear.weight
        self.A, self.B = (torch.nn.Parameter(like.new_empty(p.shape)) for p in adapter(arch, parameter, tp_rank))
        whole = self.B if self.cut == 1 else self.A
        whole.sequence_parallel = linear.sequence_parallel  # type: ignore[attr-defined]
        matrices = adapted(arch, parameter)
        own = like.new_zeros(len(self.B), len(matrices), rank)
        for piece in parameter.pieces:
            own[piece.local.slices()[0], matrices.index(piece.tensor)] = 1.0
        self.register_buffer("own", own.flatten(1) if len(matrices) > 1 else None, persistent=False)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """x: what enters the linear layer, [S, B, in]; output: what leaves it, [S, B, out], without its bias."""
        rows, columns = x.shape[0] * self.sequence_parallel, x.shape[2]
        at = (0, self.tp_rank * columns) if self.cut == 1 else (self.tp_rank * rows, 0)
        if self.training and (drop := self.drop(*at)):
            x = Dropout.apply(x, drop, self.run)
        low = x @ self.A.t()
        if self.cut == 1:
            reduce = (
                reduce_scatter_to_sequence_parallel_region
                if self.sequence_parallel
                else reduce_from_tensor_model_parallel_region
            )
            low = reduce(low, group=self.group)
        elif self.sequence_parallel:
            low = gather_from_sequence_parallel_region(low, group=self.group)
        else:
            low = copy_to_tensor_model_parallel_region(low, group=self.group)
        b = self.B if self.own is None else self.B.repeat(1, self.own.shape[1] // self.B.shape[1]) * self.own
        return torch.addmm(output.flatten(0, 1), low.flatten(0, 1), b.t(), alpha=self.scale).view_as(output)

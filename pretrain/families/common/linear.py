"""Matrix products of compiled models on a CPU.

In fp32 torch takes its BLAS for `matmul`, and oneDNN for what it compiles; oneDNN is the faster one of the two for
activations times weights.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor


def available() -> bool:
    """Whether there is a CPU to compute on, and oneDNN in this torch."""
    return (
        not torch.cuda.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows, of_weight = grad.flatten(0, -2), None
        if to_weight and weight.grad is not None:  # add to it as part of the product
            weight.grad.addmm_(rows.t(), x.flatten(0, -2))
        elif to_weight:
            of_weight = rows.t().mm(x.flatten(0, -2))
        return product(grad, weight.t()) if to_x else None, of_weight, rows.sum(0) if to_bias else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, [..., out], of x [..., in] and weight [out, in]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Local:
    """For a Megatron-core linear layer: how it computes its product where no rank has to be waited for."""

    def _forward_impl(self, input: Tensor, weight: Tensor, bias: Tensor | None, **how: Any) -> Tensor:
        if how["allreduce_dgrad"] or how["sequence_parallel"] or weight.dtype != torch.float32:
            return super()._forward_impl(input, weight, bias=bias, **how)  # type: ignore[misc]
        return _Linear.apply(input, weight, bias)


class LocalColumnParallelLinear(_Local, ColumnParallelLinear):
    """Megatron-core's, with oneDNN."""


class LocalRowParallelLinear(_Local, RowParallelLinear):
    """Megatron-core's, with oneDNN."""

"""The activation of an MLP, together with what comes before it: the gate's product, or the bias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.kernels.fused import kernel

aten = torch.ops.aten


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(gate) * up, [..., F], of [gate; up], [..., 2 * F] (Shazeer 2020); there is no bias."""
    return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return swiglu_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return swiglu_backward(grad, *ctx.saved_tensors)


@kernel()
def swiglu_forward(x: Tensor) -> Tensor:
    """See `swiglu`."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@kernel()
def swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of [gate; up]."""
    gate, up = x.chunk(2, -1)
    return torch.cat((aten.silu_backward(grad * up, gate), grad * F.silu(gate)), -1)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str = "none") -> Tensor:
    """gelu(x + bias), [..., F]; approximate as torch's: "none" or "tanh"."""
    return _BiasGelu.apply(x, bias, approximate)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return bias_gelu_forward(x, bias, approximate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad = bias_gelu_backward(grad, *ctx.saved_tensors, ctx.approximate)
        return grad, sum_of_rows(grad) if ctx.needs_input_grad[1] else None, None


@kernel()
def bias_gelu_forward(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """See `bias_gelu`."""
    return F.gelu(x + bias, approximate=approximate)


@kernel()
def bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    """The gradient of x."""
    return aten.gelu_backward(grad, x + bias, approximate=approximate)


def bias_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """relu(x + bias), [..., F]."""
    return _BiasRelu.apply(x, bias)


class _BiasRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        output = bias_relu_forward(x, bias)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        grad = relu_backward(grad, *ctx.saved_tensors)
        return grad, sum_of_rows(grad) if ctx.needs_input_grad[1] else None


@kernel()
def bias_relu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """See `bias_relu`."""
    return F.relu(x + bias)


@kernel()
def relu_backward(grad: Tensor, output: Tensor) -> Tensor:
    """The gradient of what a relu gave this output for."""
    return torch.where(output > 0, grad, 0)


@kernel()
def sum_of_rows(grad: Tensor) -> Tensor:
    """The gradient of a bias: of [..., columns], the sum of all but the last dimension."""
    return grad.flatten(0, -2).sum(0, dtype=torch.float32).to(grad.dtype)

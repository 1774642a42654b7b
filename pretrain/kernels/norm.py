"""Norms together with the residual addition before them.

A layer's stream, `hidden`, is added to by a branch and then normalised for the next one. Both come out of one pass, and
so does their gradient: what flows back along the stream and what flows back through the norm are added where the second
is computed. The gradient of a gain takes a pass of its own, since it sums over rows.

Shapes: all but the last dimension of `hidden` are rows; gains and biases are [columns], statistics [rows..., 1] in
fp32. A branch is None where a stream is only normalised; its bias is None where it has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.kernels.activation import sum_of_rows
from pretrain.kernels.fused import kernel


class AddRMSNorm(torch.autograd.Function):
    """apply(hidden, branch, gain, eps) is (hidden + branch, its RMSNorm) (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, branch: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if branch is None:
            normed, squares = rms_norm(hidden, gain, eps)
        else:
            hidden, normed, squares = add_rms_norm(hidden, branch, gain, eps)
        ctx.save_for_backward(hidden, gain, squares)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return hidden, normed

    @staticmethod
    def backward(ctx: Any, along: Tensor | None, through: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gain, squares = ctx.saved_tensors
        flows, branch, trains, _ = ctx.needs_input_grad
        grad = rms_norm_backward(along, through, hidden, gain, squares, ctx.eps) if flows or branch else None
        of_gain = rms_norm_gain(through, hidden, squares, ctx.eps) if trains else None
        return grad if flows else None, grad if branch else None, of_gain, None


@kernel()
def rms_norm(hidden: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(the norm, sums of squares)."""
    x = hidden.float()
    squares = x.square().sum(-1, keepdim=True)
    return (x * _inverse_rms(x, squares, eps) * gain).to(hidden.dtype), squares


def _inverse_rms(x: Tensor, squares: Tensor, eps: float) -> Tensor:
    # From the sums as they are, not kept itself: inductor on a CPU would make it in a loop of its own.
    return (squares / x.shape[-1] + eps).rsqrt()


@kernel()
def add_rms_norm(hidden: Tensor, branch: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(the sum, its norm, sums of squares)."""
    total = hidden + branch
    return total, *rms_norm.eager(total, gain, eps)


@kernel()
def rms_norm_backward(
    along: Tensor | None, through: Tensor, hidden: Tensor, gain: Tensor, squares: Tensor, eps: float
) -> Tensor:
    """The gradient of `hidden` from that of the sum, `along`, and that of the norm, `through`."""
    rstd = _inverse_rms(hidden, squares, eps)
    unit, scaled = hidden.float() * rstd, through.float() * gain
    grad = rstd * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    return (grad if along is None else grad + along).to(hidden.dtype)


@kernel()
def rms_norm_gain(through: Tensor, hidden: Tensor, squares: Tensor, eps: float) -> Tensor:
    """The gradient of the gain."""
    unit = hidden.float() * _inverse_rms(hidden, squares, eps)
    return (through.float() * unit).flatten(0, -2).sum(0).to(hidden.dtype)


class AddLayerNorm(torch.autograd.Function):
    """apply(hidden, branch, branch_bias, gain, bias, eps) is (hidden + branch + branch_bias, its LayerNorm)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        branch: Tensor | None,
        branch_bias: Tensor | None,
        gain: Tensor,
        bias: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        if branch is None:
            normed, mean, rstd = layer_norm(hidden, gain, bias, eps)
        else:
            hidden, normed, mean, rstd = add_layer_norm(hidden, branch, branch_bias, gain, bias, eps)
        ctx.save_for_backward(hidden, gain, mean, rstd)
        ctx.set_materialize_grads(False)
        return hidden, normed

    @staticmethod
    def backward(ctx: Any, along: Tensor | None, through: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gain, mean, rstd = ctx.saved_tensors
        flows, branch, branch_bias, gain_trains, bias_trains, _ = ctx.needs_input_grad
        grad = of_branch_bias = of_gain = of_bias = None
        if flows or branch or branch_bias:
            grad = layer_norm_backward(along, through, hidden, gain, mean, rstd)
        if branch_bias:
            of_branch_bias = sum_of_rows(grad)
        if gain_trains or bias_trains:
            of_gain, of_bias = layer_norm_gain(through, hidden, mean, rstd)
        return grad if flows else None, grad if branch else None, of_branch_bias, of_gain, of_bias, None


@kernel()
def layer_norm(hidden: Tensor, gain: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(the norm, mean, 1 / standard deviation)."""
    x = hidden.float()
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    rstd = (variance + eps).rsqrt()
    return ((x - mean) * rstd * gain + bias).to(hidden.dtype), mean, rstd


@kernel()
def add_layer_norm(
    hidden: Tensor, branch: Tensor, branch_bias: Tensor | None, gain: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the sum, its norm, mean, 1 / standard deviation)."""
    total = hidden + (branch if branch_bias is None else branch + branch_bias)
    return total, *layer_norm.eager(total, gain, bias, eps)


@kernel()
def layer_norm_backward(
    along: Tensor | None, through: Tensor, hidden: Tensor, gain: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """The gradient of `hidden` from that of the sum, `along`, and that of the norm, `through`."""
    unit, scaled = (hidden.float() - mean) * rstd, through.float() * gain
    grad = rstd * (scaled - scaled.mean(-1, keepdim=True) - unit * (scaled * unit).mean(-1, keepdim=True))
    return (grad if along is None else grad + along).to(hidden.dtype)


@kernel()
def layer_norm_gain(through: Tensor, hidden: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the gain and the bias."""
    grad = through.float().flatten(0, -2)
    unit = ((hidden.float() - mean) * rstd).flatten(0, -2)
    return (grad * unit).sum(0).to(hidden.dtype), grad.sum(0).to(hidden.dtype)


class AddBias(torch.autograd.Function):
    """apply(hidden, branch, bias) is hidden + branch + bias."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
        return add_bias(hidden, branch, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, grad, sum_of_rows(grad) if ctx.needs_input_grad[2] else None


@kernel()
def add_bias(hidden: Tensor, branch: Tensor, bias: Tensor) -> Tensor:
    """See `AddBias`."""
    return hidden + (branch + bias)

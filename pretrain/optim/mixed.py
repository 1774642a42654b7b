"""An AdamW update whose coefficients differ from element to element, each element read and written once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growth.compiled import compiled

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
_PART = 1 << 24  # elements that are updated at a time on a device, where each operation has a temporary


def update(
    tensors: Tensors,
    scale: Tensor,
    shift: Tensor,
    minus_decay: Tensor,
    index: Tensor,
    betas: tuple[float, float],
) -> None:
    """Update weights in place: p += minus_decay * p, then p += exp_avg / (scale * exp_avg_sq ** 0.5 + shift).

    tensors: weights, gradients, exp_avg and exp_avg_sq, [rows, columns] each and contiguous. scale, shift and
    minus_decay: [distinct rows, columns]; index: int64 [rows], which of them a row takes.
    """
    (_on_cpu if tensors[0].device.type == "cpu" else _on_device)(tensors, scale, shift, minus_decay, index, betas)


def _on_cpu(
    tensors: Tensors, scale: Tensor, shift: Tensor, minus_decay: Tensor, index: Tensor, betas: tuple[float, float]
) -> None:
    arrays = [x.numpy() for x in (*tensors, scale, shift, minus_decay, index)]
    _compiled(*arrays, *(arrays[0].dtype.type(x) for x in (1 - betas[0], betas[1], 1 - betas[1])))


def _on_device(
    tensors: Tensors, scale: Tensor, shift: Tensor, minus_decay: Tensor, index: Tensor, betas: tuple[float, float]
) -> None:
    step = max(1, _PART // scale.shape[1])
    for start in range(0, len(index), step):
        p, g, m, v = (x[start : start + step] for x in tensors)
        which = index[start : start + step]
        m.lerp_(g, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        p.addcmul_(p, minus_decay[which])
        p.addcdiv_(m, torch.addcmul(shift[which], v.sqrt(), scale[which]))


@compiled()
def _compiled(
    params: Any,
    grads: Any,
    exp_avgs: Any,
    exp_avg_sqs: Any,
    scale: Any,
    shift: Any,
    minus_decay: Any,
    index: Any,
    keep1: Any,
    beta2: Any,
    keep2: Any,
) -> None:  # pragma: no cover
    """One pass over memory; its inner loop becomes vector instructions. keep1, keep2: 1 - beta."""
    for row in range(params.shape[0]):
        p, g, m, v = params[row], grads[row], exp_avgs[row], exp_avg_sqs[row]
        a, b, c = scale[index[row]], shift[index[row]], minus_decay[index[row]]
        for i in range(params.shape[1]):
            m[i] += keep1 * (g[i] - m[i])
            v[i] = beta2 * v[i] + keep2 * g[i] * g[i]
            p[i] += c[i] * p[i]
            p[i] += m[i] / (a[i] * v[i] ** 0.5 + b[i])

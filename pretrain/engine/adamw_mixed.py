"""AdamW updates whose coefficients differ from element to element, each element read and written once.

With coefficients `scale`, `shift` and `minus_decay`: p += minus_decay * p, then p += exp_avg / (scale * root + shift),
where root is that of exp_avg_sq.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from growth.compiled import compiled
from pretrain.kernels.fused import kernel

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
_PART = 1 << 24  # elements that are updated at a time where each operation has a temporary


def update_rows(
    tensors: Tensors,
    scale: Tensor,
    shift: Tensor,
    minus_decay: Tensor,
    index: Tensor,
    betas: tuple[float, float],
) -> None:
    """Update a matrix of weights on a CPU, whose rows are mostly alike.

    tensors: weights, gradients, exp_avg and exp_avg_sq, [rows, columns] each and contiguous. scale, shift and
    minus_decay: [distinct rows, columns]; index: int64 [rows], which of them a row takes.
    """
    arrays = [x.numpy() for x in (*tensors, scale, shift, minus_decay, index)]
    _compiled(*arrays, *(arrays[0].dtype.type(x) for x in (1 - betas[0], betas[1], 1 - betas[1])))


def update_all(tensors: Tensors, codes: Tensor, table: Tensor, betas: tuple[float, float], compile: bool) -> None:
    """Update a partition on a device, however many generations and segments it has: in one kernel with `compile`, else
    operation by operation.

    tensors: weights, gradients, exp_avg and exp_avg_sq, [elements]; codes: of each element, a column of the table;
    table: fp32 [3, columns], scale, shift and minus_decay. What has the last column stays as it is, moments too.
    """
    if compile:
        _update(*tensors, codes, table, *betas)
        return
    for part in zip(*(x.split(_PART) for x in (*tensors, codes)), strict=True):
        _update.eager(*part, table, *betas)


@kernel(writes=(0, 2, 3))
def _update(
    params: Tensor,
    grads: Tensor,
    exp_avgs: Tensor,
    exp_avg_sqs: Tensor,
    codes: Tensor,
    table: Tensor,
    beta1: float,
    beta2: float,
) -> None:
    rests = codes == table.shape[1] - 1
    scale, shift, minus_decay = (row[codes.int()] for row in table)
    exp_avg = torch.where(rests, exp_avgs, exp_avgs + (1 - beta1) * (grads - exp_avgs))
    exp_avg_sq = torch.where(rests, exp_avg_sqs, beta2 * exp_avg_sqs + (1 - beta2) * grads * grads)
    param = params + minus_decay * params
    params.copy_(torch.where(rests, params, param + exp_avg / (scale * exp_avg_sq.sqrt() + shift)))
    exp_avgs.copy_(exp_avg)
    exp_avg_sqs.copy_(exp_avg_sq)


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

"""A certificate in one process, at any size that fits: the reference model before and after growth."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from growth.architecture import LogicalTensor
from growth.box import Box
from growth.certificate import TOLERANCE, Certificate, count_dead, relative_error
from growth.evaluate import Read
from growth.plan import Plan
from growth.reference import logits

_ADAM_EPS = 1e-8


def loss(logits_BSV: torch.Tensor, ids_BS: torch.Tensor) -> torch.Tensor:
    """The mean next-token loss in nats."""
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten())


def certify(
    plan: Plan,
    read: Read,
    ids_BS: torch.Tensor,
    *,
    lr: float,
    train_ids_BS: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Grow the model that `read` gives and measure it on token ids [B, S] of the old vocabulary.

    Dead parameters are found on `train_ids_BS` (in the new vocabulary; `ids_BS` if not given) by two backward passes
    around one Adam step of `lr` on a copy.
    """
    assert plan.old is not None
    train = ids_BS if train_ids_BS is None else train_ids_BS
    tensors = plan.new.tensors()
    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), read, dtype=dtype).clone().requires_grad_()
        for name, t in tensors.items()
    }
    with torch.no_grad():
        old = logits(read, plan.old, ids_BS, dtype)
        new = logits(_reader(weights), plan.new, ids_BS, dtype)[..., : plan.old.sizes["vocab"]]
    first = _gradients(plan, weights, train)
    with torch.no_grad():
        for name, w in weights.items():  # Adam's first step, bias corrected
            w -= lr * first[name] / (first[name].abs() + _ADAM_EPS)
    second = _gradients(plan, weights, train)
    dead: dict[str, tuple[int, int]] = {}
    inputs = train[:, :-1]  # the last token has no target
    for name, t in tensors.items():
        born = plan.new_mask(name, Box.whole(t.shape))
        found, counted = count_dead(born, first[name], second[name], _seen(t, inputs))
        before = dead.get(t.spec.name, (0, 0))
        dead[t.spec.name] = (before[0] + found, before[1] + counted)
    return Certificate.of(
        plan,
        error=relative_error(new, old),
        loss_before=float(loss(old, ids_BS)),
        loss_after=float(loss(new, ids_BS)),
        dead={name: d for name, d in dead.items() if d[1]},
        tolerance=tolerance,
    )


def _reader(weights: dict[str, torch.Tensor]) -> Read:
    return lambda kind, name, box: weights[name][box.slices()]


def _gradients(plan: Plan, weights: dict[str, torch.Tensor], ids_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    value = loss(logits(_reader(weights), plan.new, ids_BS, next(iter(weights.values())).dtype), ids_BS)
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


def _seen(tensor: LogicalTensor, ids_BS: torch.Tensor) -> torch.Tensor | None:
    """The rows of a lookup table that a batch reaches; None for any other tensor."""
    first = tensor.spec.dims[0]
    if first.axes != ("vocab",) or first.role != "read":
        return None
    return torch.zeros(tensor.shape[0], dtype=torch.bool).index_fill(0, ids_BS.unique(), True)[:, None]

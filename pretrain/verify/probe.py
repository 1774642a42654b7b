"""A certificate in one process, at any size that fits: the reference model before and after growth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.certificate import TOLERANCE, Certificate, count_dead, relative_error
from growth.evaluate.box_values import Read
from growth.family import GENERAL, LAYERS
from growth.generations import Generations
from growth.maps import AxisMap, LayerMap
from growth.plan import Plan
from pretrain import families
from pretrain.data.documents import positions
from pretrain.data.samples import Samples
from pretrain.families.reference import logits, loss

_STEPS = 10  # after which copies that still are copies count as locked
_SAME = 1e-4  # relative difference below which a channel is a copy

Tensors = dict[str, torch.Tensor]
Loss = Callable[[Read, Architecture, int | None], torch.Tensor]
"""loss(model, architecture, vocab): nats, over the first `vocab` ids if that is given."""


def certify(
    plan: Plan,
    read: Read,
    ids_BS: torch.Tensor | Samples,
    *,
    lr: float,
    train_ids_BS: torch.Tensor | Samples | None = None,
    losses: tuple[Loss, Loss] | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Grow the model that `read` gives and measure it on token ids [B, S] of the old vocabulary; with `losses`, on
    samples.

    Dead parameters and locked channels are found on `train_ids_BS` (in the new vocabulary; `ids_BS` if not given) by
    backward passes before and after Adam steps of `lr` on a copy: one for the dead, ten for the locked. `losses` are
    those on `ids_BS` and on `train_ids_BS`; by default the reference models', of each token from those before it.
    """
    assert plan.old is not None
    train = ids_BS if train_ids_BS is None else train_ids_BS
    if losses is None:
        assert isinstance(ids_BS, torch.Tensor)
        assert isinstance(train, torch.Tensor)
        losses = _reference_loss(ids_BS, dtype), _reference_loss(train, dtype)
        # Of a causal model the last token has no target by itself.
        train = families.of(plan.new.family).samples_of(plan.new, train)
    of_probe, of_train = losses
    seen = {"inputs": train} if isinstance(train, torch.Tensor) else train
    tensors = plan.new.tensors()
    weights = {
        name: plan.evaluate(name, Box.whole(t.shape), read, dtype=dtype).clone().requires_grad_()
        for name, t in tensors.items()
    }
    vocab = min(plan.old.sizes["vocab"], plan.new.sizes["vocab"])
    with torch.no_grad():
        old = logits(read, plan.old, ids_BS, dtype)[..., :vocab]
        loss_before = of_probe(read, plan.old, vocab)
        new = logits(_reader(weights), plan.new, ids_BS, dtype)[..., :vocab]
        loss_after = of_probe(_reader(weights), plan.new, vocab)
    pairs = copies(plan)
    optimizer = torch.optim.Adam(list(weights.values()), lr=lr, betas=(0.9, 0.95))
    first = _gradients(plan, weights, of_train)
    at_once = {axis: _locked(plan, axis, found, weights, first) for axis, found in pairs.items()}
    _step(optimizer, weights, first)
    second = _gradients(plan, weights, of_train)
    dead: dict[str, tuple[int, int]] = {}
    for name, t in tensors.items():
        if len(t.spec.dims) == 1 and t.spec.dims[0].role == "key":
            continue  # a bias of keys moves every score of a query alike: softmax does not see it, old or new
        found, counted = count_dead(added(plan, t), first[name], second[name], _seen(t, seen))
        before = dead.get(t.spec.name, (0, 0))
        dead[t.spec.name] = (before[0] + found, before[1] + counted)
    locked: dict[str, tuple[float, float]] = {}
    if pairs:
        for _ in range(_STEPS - 1):
            _step(optimizer, weights, _gradients(plan, weights, of_train))
        last = _gradients(plan, weights, of_train)
        locked = {axis: (at_once[axis], _locked(plan, axis, found, weights, last)) for axis, found in pairs.items()}
    return Certificate.of(
        plan,
        error=relative_error(new, old),
        loss_before=float(loss_before),
        loss_after=float(loss_after),
        dead={name: d for name, d in dead.items() if d[1]},
        locked=locked,
        tolerance=tolerance,
    )


def _sources(plan: Plan) -> dict[str, np.ndarray]:
    """For each axis and "layers" the old index of each new one, -1 without one, through all steps."""
    assert plan.old is not None
    sources = {axis: np.arange(n) for axis, n in plan.old.sizes.items()}
    for step in plan.steps:
        maps: dict[str, AxisMap | LayerMap] = {**step.axes, **({LAYERS: step.layers} if step.layers else {})}
        for axis, m in maps.items():
            source = m.source[:, 0]
            sources[axis] = np.where(source >= 0, np.append(sources[axis], -1)[source], -1)
    return sources


def added(plan: Plan, tensor: LogicalTensor) -> torch.Tensor:
    """bool of the tensor's shape: what was not there before the event, copies included."""
    births = {}
    for axis, source in _sources(plan).items():
        first = np.zeros(len(source), dtype=bool)
        first[np.unique(source, return_index=True)[1]] = True
        births[axis] = tuple((int(not (f and s >= 0)), 1) for f, s in zip(first, source, strict=True))
    fresh = Generations(births, 2).of(tensor, Box.whole(tensor.shape)) > 0
    return fresh | plan.new_mask(tensor.name, Box.whole(tensor.shape))


def copies(plan: Plan) -> dict[str, list[tuple[int, int]]]:
    """For each axis with copied channels the pairs (copy, the first index with the same source)."""
    found: dict[str, list[tuple[int, int]]] = {}
    for axis, source in _sources(plan).items():
        first: dict[int, int] = {}
        pairs = [(i, first.setdefault(s, i)) for i, s in enumerate(source.tolist()) if s >= 0]
        if axis != LAYERS and any(i != j for i, j in pairs):
            found[axis] = [(i, j) for i, j in pairs if i != j]
    return found


def _locked(plan: Plan, axis: str, pairs: list[tuple[int, int]], weights: Tensors, gradients: Tensors) -> float:
    """The share of copied channels whose writing weights and gradients are those of the channel that they copy."""
    different = torch.zeros(len(pairs), dtype=torch.bool)
    new, old = (torch.tensor(side) for side in zip(*pairs, strict=True))
    for name, t in plan.new.tensors().items():
        for d, dim in enumerate(t.spec.dims):
            if axis not in dim.axes or GENERAL[dim.role] != "write":
                continue
            split = [plan.new.sizes[a] for a in dim.axes]
            for values in (weights[name].detach(), gradients[name]):
                channels = values.unflatten(d, split).movedim(d + dim.axes.index(axis), 0)
                rows = channels.reshape(len(channels), -1)
                difference = (rows[new] - rows[old]).norm(dim=1)
                different |= difference > _SAME * rows[old].norm(dim=1)
    return 1.0 - different.double().mean().item()


def _reader(weights: Tensors) -> Read:
    return lambda kind, name, box: weights[name][box.slices()]


def _reference_loss(ids_BS: torch.Tensor, dtype: torch.dtype) -> Loss:
    return lambda model, arch, vocab: loss(model, arch, ids_BS, dtype, vocab)


def _gradients(plan: Plan, weights: Tensors, of_train: Loss) -> Tensors:
    value = of_train(_reader(weights), plan.new, None)
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


def _step(optimizer: torch.optim.Optimizer, weights: Tensors, gradients: Tensors) -> None:
    for name, w in weights.items():
        w.grad = gradients[name]
    optimizer.step()


def _seen(tensor: LogicalTensor, batch: Samples) -> torch.Tensor | None:
    """The rows of a lookup table that a batch reaches; None for any other tensor."""
    first = tensor.spec.dims[0]
    lookups = {"vocab": batch["inputs"], "positions": positions(batch), "types": torch.zeros(1).long()}
    if first.role != "read" or first.axes[0] not in lookups:
        return None
    reached = lookups[first.axes[0]].unique()
    return torch.zeros(tensor.shape[0], dtype=torch.bool).index_fill(0, reached, True)[:, None]

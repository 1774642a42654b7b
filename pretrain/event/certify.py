"""A growth event as it happens: is the function kept on the ranks' own shards, and can all that is new learn?"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from growth import Architecture, Plan
from growth.certificate import TOLERANCE, Certificate, count_dead, relative_error
from pretrain.data.documents import positions
from pretrain.data.samples import Samples, part
from pretrain.engine.engine import Engine

# bf16 keeps 8 bits: a forward pass is off by some 1e-2 of the largest logit before any growth.
BF16_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Before:
    """What the model that will grow did with the probe: its logits [n, S, vocab], on the layout's `loss_rank` alone,
    and the global norm of its gradient."""

    logits: Tensor | None
    grad_norm: float

    @staticmethod
    def of(engine: Engine, probe: Samples) -> Before:
        """Measured on an engine with the parent's weights (collective)."""
        return Before(engine.logits(probe, remember=True), gradient_norm(engine, probe))


def certify(
    engine: Engine,
    plan: Plan,
    *,
    before: Before,
    probe: Samples,
    batch: Samples,
    lr: float,
) -> Certificate:
    """Measure the event on the model that has just been loaded, and must be loaded anew afterwards (collective).

    probe is held-out text in ids that both have, batch in the new one, the same on every rank; the batch's size is a
    multiple of dp * micro_batch. One optimizer step is made at `lr`. Dead parameters are new and have no gradient on
    two backward passes, before and after that step.
    """
    new, old = engine.logits(probe, remember=True), before.logits
    measured: list[float] = []
    if new is not None:
        assert old is not None
        ids = min(new.shape[-1], old.shape[-1])  # those that both models have
        new, old = new[..., :ids], old[..., :ids]
        measured = [relative_error(new, old), _loss(old, probe), _loss(new, probe)]
    norm_after = gradient_norm(engine, probe)
    dead = _dead(engine, plan, batch, lr)
    box = [measured]
    dist.broadcast_object_list(box, src=engine.layout.loss_rank)
    error, loss_before, loss_after = box[0]
    return Certificate.of(
        plan,
        error=error,
        loss_before=loss_before,
        loss_after=loss_after,
        dead=dead,
        grad_norm_before=before.grad_norm if isfinite(before.grad_norm) else None,
        grad_norm_after=norm_after if isfinite(norm_after) else None,
        tolerance=TOLERANCE if engine.numerics.precision == "fp32" else BF16_TOLERANCE,
    )


def gradient_norm(engine: Engine, probe: Samples) -> float:
    """The global norm of the gradient of samples that every data-parallel rank has all of; changes Adam's moments."""
    return engine.train_step(probe, 0.0).grad_norm


def _loss(logits_BSV: Tensor, probe: Samples) -> float:
    counted = probe["mask"].bool() if "mask" in probe else torch.ones_like(probe["labels"], dtype=torch.bool)
    return float(F.cross_entropy(logits_BSV[counted].double(), probe["labels"][counted]))


def _dead(engine: Engine, plan: Plan, batch: Samples, lr: float) -> dict[str, tuple[int, int]]:
    """(dead, counted) new parameters per row of the family's table, over all ranks."""
    own = part(batch, engine.dp_rank, engine.layout.dp)
    engine.backward(own)
    before = engine.reached()
    engine.step(lr)
    engine.backward(own)
    after = engine.reached()
    engine.forget()
    names = [spec.name for spec in plan.new.rows]
    counts = torch.zeros(len(names), 2, dtype=torch.int64, device=engine.device)
    occurs = _occurs(plan.new, batch)
    for (parameter, _), first, second in zip(engine.parameters, before, after, strict=True):
        if engine.dp_rank or not parameter.owner:
            continue
        for piece in parameter.pieces:
            tensor = plan.new.tensor(piece.tensor)
            born = plan.new_mask(piece.tensor, piece.box)
            rows = tensor.spec.dims[0]
            seen = None
            if rows.role == "read" and rows.axes in occurs:
                seen = occurs[rows.axes][piece.box.start[0] : piece.box.stop[0], None]
            at = piece.local.slices()
            dead, counted = count_dead(born, first[at].cpu(), second[at].cpu(), seen)
            counts[names.index(tensor.spec.name)] += torch.tensor([dead, counted], device=engine.device)
    dist.all_reduce(counts)
    return {name: (int(d), int(n)) for name, (d, n) in zip(names, counts.tolist(), strict=True) if n}


def _occurs(arch: Architecture, batch: Samples) -> dict[tuple[str, ...], Tensor]:
    """Which rows of the tables that inputs look up occur in a batch, by the axes of the rows."""
    used = {"vocab": batch["inputs"], "positions": positions(batch)}
    if "types" in batch:
        used["types"] = batch["types"]
    occurs: dict[tuple[str, ...], Tensor] = {}
    for axis, indices in used.items():
        if axis in arch.sizes:
            occurs[axis,] = torch.zeros(arch.sizes[axis], dtype=torch.bool)
            occurs[axis,][indices.flatten()] = True
    return occurs

"""A growth event as it happens: is the function kept on the ranks' own shards, and can all that is new learn?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from growth import Architecture, Plan, reference
from growth.certificate import TOLERANCE, Certificate, count_dead, relative_error
from pretrain.checkpoint import Reader
from pretrain.engine import Engine
from pretrain.layout import Layout

# bf16 keeps 8 bits: a forward pass is off by some 1e-2 of the largest logit before any growth.
BF16_TOLERANCE = 5e-2


def judge(layout: Layout) -> int:
    """The rank that compares the logits: the first one that computes them."""
    return (layout.pp - 1) * layout.dp * layout.tp


def old_logits(reader: Reader, old: Architecture, probe: Tensor) -> Tensor:
    """The parent's logits [n, S, vocab] for inputs probe[:, :-1], by the reference model, a layer at a time."""
    with torch.no_grad():
        return reference.logits(reader.read, old, probe[:, :-1])


def certify(
    engine: Engine,
    plan: Plan,
    reload: Callable[[], None],
    *,
    parent_logits: Tensor | None,
    probe: Tensor,
    batch: Tensor,
    lr: float,
) -> Certificate:
    """Measure the event on the model that has just been loaded (collective).

    parent_logits [n, S, old vocab] are needed on the judge only. probe [n, S + 1] is held-out text in the parent's
    segmentation, batch [m, S + 1] in the new one, the same on every rank; m is a multiple of dp * micro_batch. One
    optimizer step is made at `lr`, and undone by `reload`. Dead parameters are new and have no gradient on two backward passes,
    before and after that step.
    """
    new = engine.logits(probe)
    measured: list[float] = []
    if dist.get_rank() == judge(engine.layout):
        assert new is not None and parent_logits is not None
        new = new[..., : parent_logits.shape[-1]].cpu()
        measured = [relative_error(new, parent_logits), _loss(parent_logits, probe), _loss(new, probe)]
    dead = _dead(engine, plan, batch, lr)
    reload()
    measured = _from_judge(measured, engine.layout)
    return Certificate.of(
        plan,
        error=measured[0],
        loss_before=measured[1],
        loss_after=measured[2],
        dead=dead,
        tolerance=TOLERANCE if engine.numerics.precision == "fp32" else BF16_TOLERANCE,
    )


def _loss(logits_BSV: Tensor, probe: Tensor) -> float:
    return float(F.cross_entropy(logits_BSV.flatten(0, 1).double(), probe[:, 1:].flatten()))


def _from_judge(values: list[float], layout: Layout) -> list[float]:
    told = [values]
    dist.broadcast_object_list(told, src=judge(layout))
    return told[0]


def _dead(engine: Engine, plan: Plan, batch: Tensor, lr: float) -> dict[str, tuple[int, int]]:
    """(dead, counted) new parameters per row of the family's table, over all ranks."""
    mine = batch.chunk(engine.layout.dp)[engine.dp_rank]
    engine.backward(mine)
    before = _reached(engine)
    engine.step(lr)
    engine.backward(mine)
    after = _reached(engine)
    engine.forget()
    rows = [spec.name for spec in plan.new.table.tensors]
    counts = torch.zeros(len(rows), 2, dtype=torch.int64, device=engine.device)
    occurs = torch.zeros(plan.new.sizes["vocab"], dtype=torch.bool)
    occurs[batch[:, :-1].flatten()] = True
    for (parameter, _), first, second in zip(engine.parameters, before, after, strict=True):
        if engine.dp_rank or not parameter.owner:
            continue
        for piece in parameter.pieces:
            tensor = plan.new.tensor(piece.tensor)
            born = plan.new_mask(piece.tensor, piece.box)
            looked_up = tensor.spec.dims[0].axes == ("vocab",) and tensor.spec.dims[0].role == "read"
            seen = occurs[piece.box.start[0] : piece.box.stop[0], None] if looked_up else None
            at = piece.local.slices()
            dead, counted = count_dead(born, first[at].cpu(), second[at].cpu(), seen)
            counts[rows.index(tensor.spec.name)] += torch.tensor([dead, counted], device=engine.device)
    dist.all_reduce(counts)
    return {name: (int(d), int(n)) for name, (d, n) in zip(rows, counts.tolist(), strict=True) if n}


def _reached(engine: Engine) -> list[Tensor]:
    """Per local parameter, uint8: whether an element has a gradient on any data-parallel rank (collective)."""
    found = []
    for _, parameter in engine.parameters:
        nonzero = (engine.gradient(parameter) != 0).to(torch.uint8)
        dist.all_reduce(nonzero, op=dist.ReduceOp.MAX, group=parallel_state.get_data_parallel_group())
        found.append(nonzero)
    return found


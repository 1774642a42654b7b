"""A model with a memory, on every kind of layout, against plain torch in one pass over all that it remembers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import growth
from growth import Architecture, Box
from growth.span import Span
from pretrain.data import documents
from pretrain.data.samples import Samples, causal, part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.families.common.reference import Remembering
from pretrain.families.reference import objective
from pretrain.kernels import fused
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.ranks import GQA
from tests.distributed.test_layouts import LAYOUTS
from tests.distributed.test_transformer_xl import XL

SPANS = replace(GQA, span=Span(max=40, ramp=20))
"""Heads that begin with a span of 0, and see 20 tokens back: beyond a sample."""
FULL = (ranks.GLOBAL_BATCH,) * 3
RAMP = (4, 12, 8)
END = 2


class Case(NamedTuple):
    """A model, the length of its memory, and the samples of each step: a lane that is new has nothing to remember.
    apart: whether documents do not see each other, of which there are many then."""

    arch: Architecture
    length: int
    sizes: tuple[int, ...] = FULL
    apart: bool = False


Weights = dict[str, torch.Tensor]
Way = tuple[Case, dict[str, Any], Numerics]
"""A case, a layout, and how a model is computed."""


def text(sizes: tuple[int, ...] = FULL, apart: bool = False) -> list[Samples]:
    """The samples of some steps, in which row by row goes on."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 101, (ranks.GLOBAL_BATCH, len(sizes) * ranks.SEQ_LEN + 1), generator=draw)
    if apart:  # an end at most places of a sample, the first and the last too
        tokens[torch.rand(tokens.shape, generator=draw) < 0.08] = END
    starts = range(0, len(sizes) * ranks.SEQ_LEN, ranks.SEQ_LEN)
    steps = [causal(tokens[:n, at : at + ranks.SEQ_LEN + 1]) for n, at in zip(sizes, starts, strict=True)]
    return [documents.in_lanes(documents.apart(each, END), END) for each in steps] if apart else steps


def trained(ways: list[Way]) -> list[list[tuple[float, float]]]:
    """For each way, the loss and the norm of the gradient of steps that change nothing but the memory."""
    fused.observer = lambda kernel, args: kernel.eager(*args)  # the kernels' formulas, without a compiler
    found = []
    for (arch, length, sizes, apart), how, numerics in ways:
        layout = ranks.layout(arch, how)
        engine = Engine(
            arch,
            layout,
            numerics,
            Adam(clip=0.0),
            seq_len=ranks.SEQ_LEN,
            micro_batch=ranks.MICRO_BATCH,
            memory=length,
        )
        ranks.begin(engine)
        parts = layout.tp if layout.sequence_parallel else 1
        rows: list[int] = []  # of what queries, keys and values are made of
        for name, module in engine.chunks[0].named_modules():
            if name.endswith("linear_qkv"):
                module.register_forward_pre_hook(lambda module, args, rows=rows: rows.append(len(args[0])))
        steps = []
        for number, samples in enumerate(text(sizes, apart)):
            engine.logits(text()[0])  # what is measured in between is neither remembered nor remembers
            own = part(samples, engine.dp_rank, layout.dp)
            result = engine.train_step(own, 0.0, remember=True, recheck=number == 1)
            steps.append((result.loss, result.grad_norm))
        found.append(steps)
        assert max(rows) == (min(length, 64) if arch.span else max(length, ranks.SEQ_LEN)) // parts
    return found


@cache
def weights(arch: Architecture) -> Weights:
    """What `ranks.begin` draws, in double precision."""
    plan = growth.initial(arch, 3, 0.05)
    drawn = {name: plan.evaluate(name, Box.whole(t.shape), None) for name, t in arch.tensors().items()}  # type: ignore[arg-type]
    return {name: value.double().requires_grad_() for name, value in drawn.items()}


@cache
def expected(case: Case) -> list[tuple[float, float]]:
    """The same in plain torch, where the rows with as much to remember as each other are computed together."""
    arch, length, sizes, apart = case
    if apart:
        return one_by_one(arch, length, text(sizes, apart))
    drawn = weights(arch)
    remembered: dict[int, list[torch.Tensor]] = {}  # by row, of each block
    found = []
    for samples in text(sizes):
        rows = range(len(samples["inputs"]))
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(remembered[row][0].shape[0] if row in remembered else 0, []).append(row)
        loss, after = torch.zeros((), dtype=torch.float64), dict[int, list[torch.Tensor]]()
        for filled, group in groups.items():
            blocks = range(arch.depth) if filled else ()
            memory = [torch.stack([remembered[row][block] for row in group]) for block in blocks]
            own = Remembering({name: each[group] for name, each in samples.items()}, memory)
            share = len(group) / len(rows)
            loss = loss + share * objective(lambda kind, name, box: drawn[name], arch, own, torch.float64)
            for at, row in enumerate(group):
                inputs = [x[at].detach() for x in own.inputs]
                before = [m[at] for m in memory] or [x[:0] for x in inputs]
                after[row] = [torch.cat(pair)[-length:] for pair in zip(before, inputs, strict=True)]
        norms = [g.norm() for g in torch.autograd.grad(loss, list(drawn.values()))]
        found.append((loss.item(), torch.stack(norms).norm().item()))
        remembered = after
    return found


def one_by_one(arch: Architecture, length: int, steps: list[Samples]) -> list[tuple[float, float]]:
    """The same of documents: each part of one that a sample has is run by itself, behind what is remembered of it."""
    drawn = weights(arch)
    remembered: dict[int, list[torch.Tensor]] = {}
    found = []
    for samples in steps:
        loss = torch.zeros((), dtype=torch.float64)
        cuts = documents.lengths(samples[documents.STARTS], ranks.SEQ_LEN)
        for row, parts in enumerate(cuts):
            if samples["inputs"][row, 0] == END:
                remembered.pop(row, None)
            pieces = [samples[name][row : row + 1].split(parts, 1) for name in ("inputs", "labels")]
            for inputs, labels in zip(*pieces, strict=True):
                memory = remembered.pop(row, [])
                own = Remembering({"inputs": inputs, "labels": labels}, memory)
                share = inputs.shape[1] / samples["inputs"].numel()
                loss = loss + share * objective(lambda kind, name, box: drawn[name], arch, own, torch.float64)
                before = memory or [x[:, :0].detach() for x in own.inputs]
                pairs = zip(before, own.inputs, strict=True)
                after = [torch.cat((old, new.detach()), 1)[:, -length:] for old, new in pairs]
                if inputs is pieces[0][-1]:
                    remembered[row] = after
        norms = [g.norm() for g in torch.autograd.grad(loss, list(drawn.values()))]
        found.append((loss.item(), torch.stack(norms).norm().item()))
        remembered = {row: after for row, after in remembered.items() if row < len(samples["inputs"])}
    return found


@pytest.mark.parametrize("arch", [GQA, XL], ids=lambda arch: arch.family)
def test_reference_equals_one_pass_with_the_gradient_cut(arch: Architecture) -> None:
    """Of two segments at M = S: one pass over both of them."""
    one, two = text()[:2]
    both = {name: torch.cat((one[name], two[name]), 1) for name in one}
    second = torch.cat((torch.zeros_like(one["inputs"]), torch.ones_like(two["inputs"])), 1).float()
    samples = {**both, "mask": second}
    loss = objective(lambda kind, name, box: weights(arch)[name], arch, samples, torch.float64)
    assert loss.item() == pytest.approx(expected(Case(arch, 16, FULL))[1][0], rel=1e-12)


def check(found: list[list[tuple[float, float]]], ways: list[Way]) -> None:
    for steps, (case, *_) in zip(found, ways, strict=True):
        np.testing.assert_allclose(np.array(steps), np.array(expected(case)), rtol=1e-5)


def test_in_one_process() -> None:
    """A memory shorter and longer than a sample; eager and kernels, recomputed or not."""
    ways: list[Way] = [
        (Case(GQA, 16, FULL), {}, Numerics()),
        (Case(GQA, 8, FULL), {}, Numerics(compile=True)),
        (Case(GQA, 24, RAMP), {}, Numerics(recompute="full")),
        (Case(GQA, 16, FULL), {}, Numerics(compile=True, recompute="full")),
        (Case(GQA, 24, FULL), {}, Numerics(compile=True, recompute="selective")),
        (Case(XL, 16, FULL), {}, Numerics(compile=True)),
        (Case(SPANS, 80, RAMP), {}, Numerics(recompute="selective")),
        (Case(SPANS, 80), {}, Numerics(compile=True)),
        (Case(XL, 24, RAMP), {}, Numerics(recompute="selective")),
        (Case(GQA, 24, RAMP, apart=True), {}, Numerics()),
        (Case(GQA, 16, apart=True), {}, Numerics(compile=True, recompute="full")),
        (Case(SPANS, 24, apart=True), {}, Numerics()),
        (Case(XL, 24, RAMP, apart=True), {}, Numerics(recompute="selective")),
    ]
    (found,) = run(1, trained, ways)
    check(found, ways)


def test_under_every_kind_of_layout() -> None:
    ways: list[Way] = [
        (Case(GQA, 24, FULL), LAYOUTS["tp2"], Numerics()),
        (Case(GQA, 16, FULL), LAYOUTS["tp2-sp"], Numerics()),
        (Case(GQA, 24, RAMP), LAYOUTS["tp2-sp"], Numerics(compile=True, recompute="full")),
        (Case(GQA, 8, FULL), LAYOUTS["pp2"], Numerics(recompute="full")),
        (Case(GQA, 16, FULL), LAYOUTS["pp2-interleaved"], Numerics()),
        (Case(GQA, 16, RAMP), LAYOUTS["dp2"], Numerics(recompute="selective")),
        (Case(XL, 24, RAMP), LAYOUTS["tp2"], Numerics(compile=True)),
        (Case(SPANS, 24, RAMP), LAYOUTS["tp2-sp"], Numerics(compile=True)),
        (Case(SPANS, 80, RAMP), LAYOUTS["tp2"], Numerics()),
        (Case(XL, 16, FULL), LAYOUTS["tp2-sp"], Numerics()),
        (Case(XL, 16, FULL), LAYOUTS["pp2"], Numerics(recompute="full")),
        (Case(XL, 24, RAMP), LAYOUTS["dp2"], Numerics()),
        (Case(GQA, 24, RAMP, apart=True), LAYOUTS["tp2-sp"], Numerics(recompute="selective")),
        (Case(GQA, 24, RAMP, apart=True), LAYOUTS["pp2"], Numerics(compile=True)),
        (Case(GQA, 24, RAMP, apart=True), LAYOUTS["dp2"], Numerics(recompute="full")),
        (Case(XL, 24, RAMP, apart=True), LAYOUTS["pp2"], Numerics()),
    ]
    for found in run(2, trained, ways):
        check(found, ways)

"""Heads that learn how far they see, on real ranks: one layout against another, the reference model, and growth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growth import Architecture
from growth.span import Span
from pretrain.data.samples import part
from pretrain.engine.dropout import step_key
from pretrain.engine.engine import Engine
from pretrain.engine.megatron import Numerics
from pretrain.hf.imports import shape_of
from pretrain.kernels import fused
from pretrain.losses.spans import SPANS
from pretrain.report import history
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import GPT2
from tests.distributed.test_gradients import check_gradient
from tests.distributed.test_growth_on_load import same
from tests.distributed.test_layouts import LAYOUTS, assemble, world
from tests.distributed.test_stage import curriculum, stage, state
from tools.export_hf import main as export_hf
from tools.report import main as report

SPAN, PENALTY = Span(max=12, ramp=5), 0.3
LLAMA2, TIED = (replace(arch, span=SPAN) for arch in (ranks.GQA, GPT2))
BOTH = pytest.mark.parametrize("arch", [LLAMA2, TIED], ids=lambda arch: arch.family)
HALVES = LLAMA2.replace(kinds=("attention", "mlp", "layer"), calls=(0, 0, 1, 2, 1, 2))
RULES = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": "fp32"}
RULES |= {"eval_interval": 4, "eval_bytes": 2048}
DROPS = Numerics(attention_dropout=0.2)


def spread(engine: Engine) -> None:
    """Give each head a span of its own, that of its place in its tensor; no whole number of tokens."""
    for owned in engine.owned:
        for box in owned.boxes:
            if box.tensor.endswith(".span"):
                layer = engine.arch.tensor(box.tensor).layer or 0
                heads = torch.arange(box.box.start[0], box.box.stop[0])
                box.view(owned.weight).copy_(0.1 + 0.8 * ((heads * 0.37 + layer * 0.21) % 1))
    engine.publish_weights()


def trained(arch: Architecture, how: dict[str, Any], numerics: Numerics, count: int = 4) -> Any:
    """[(loss, norm, terms, spans)] of some steps, values after the first and after all, validation before."""
    fused.observer = lambda kernel, args: kernel.eager(*args)
    engine = ranks.engine_for(arch, how, numerics)
    ranks.begin(engine)
    spread(engine)
    engine.penalise_spans(PENALTY)
    assert engine.spans
    found, first = [], None
    data = ranks.batches(arch, count)
    validation = engine.evaluate(part(data[0], engine.dp_rank, engine.layout.dp))
    for number, batch in enumerate(data):
        mine = part(batch, engine.dp_rank, engine.layout.dp)
        result = engine.train_step(mine, 1e-2, key=step_key(1, "first", number))
        found.append((result.loss, result.grad_norm, *result.terms.values(), *engine.spans.by_head.flatten()))
        first = first or ranks.collected(engine)
    for number, core in engine.spans._here.items():  # of all ranks: they make keys of as much of a memory
        assert core.longest == engine.spans.by_head[number].max()
    return found, first, ranks.collected(engine), validation, engine.spans.figures()


@pytest.fixture(scope="module")
def one_process() -> Any:
    known: dict[Any, Any] = {}

    def reference(arch: Architecture, numerics: Numerics) -> Any:
        key = arch, numerics.attention_dropout
        if key not in known:
            (known[key],) = run(1, trained, arch, {}, replace(numerics, recompute="none", compile=None))
        return known[key]

    return reference


@pytest.mark.parametrize(
    ("arch", "name", "numerics"),
    [
        (LLAMA2, "tp2-sp", DROPS),
        (LLAMA2, "pp2", replace(DROPS, recompute="selective")),
        (LLAMA2, "dp2", replace(DROPS, recompute="full", compile=True)),
        (TIED, "tp2-pp2-dp2", Numerics(compile=True)),
        (HALVES, "pp2", Numerics(recompute="full")),
    ],
    ids=lambda x: getattr(x, "family", x) if isinstance(x, str | Architecture) else "",
)
def test_agrees_with_one_process(arch: Architecture, name: str, numerics: Numerics, one_process: Any) -> None:
    """Loss, penalty, gradient norm and every span of four steps; the gradient, as the first step's moments have it."""
    how = LAYOUTS[name]
    steps, first, _, validation, figures = one_process(arch, numerics)
    found = run(world(how), trained, arch, how, numerics)
    for theirs, _, _, valid, figure in found:
        np.testing.assert_allclose(theirs, steps, rtol=1e-5, atol=1e-5)
        assert valid == pytest.approx(validation)
        assert figure == pytest.approx(figures, rel=1e-4)
    expected = assemble(arch, [first])
    largest = max(float(np.abs(value).max()) for key, value in expected.items() if key[0] == "exp_avg")
    for key, value in assemble(arch, [r[1] for r in found]).items():
        if key[0] == "exp_avg":
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-5 * largest, err_msg=str(key))


@pytest.mark.parametrize(("arch", "name"), [(HALVES, "tp2"), (TIED, "pp2")], ids=lambda x: getattr(x, "family", x))
def test_the_gradient_is_the_reference_models(arch: Architecture, name: str) -> None:
    """That of the model alone: this engine has no penalty."""
    check_gradient(arch, LAYOUTS[name], "fp32")


def slopes(arch: Architecture, how: dict[str, Any]) -> Any:
    """Of the first span that this rank owns: the penalty's gradient over all data-parallel ranks, and by differences of
    the loss of a step; and where masters end that steps have driven out of bounds, by the host's spans."""
    engine = ranks.engine_for(arch, how, clip=0.0)
    ranks.begin(engine)
    spread(engine)
    (batch,) = ranks.batches(arch, 1)
    mine = part(batch, engine.dp_rank, engine.layout.dp)
    spans = [o for o in engine.owned if o.parameter.name.endswith(".span")]
    gradients, terms = [], []
    for penalty in (0.0, PENALTY):
        engine.penalise_spans(penalty)
        engine.backward(mine)
        reduced = engine._gradients.reduce().clone()
        gradients.append([reduced[o.offset :][: o.weight.numel()].clone() for o in spans])
        engine.forget()
    for move in (-0.05, 0.1):
        for o in spans:
            o.weight.add_(move)
        engine.publish_weights()
        terms.append(engine.train_step(mine, 0.0).terms[SPANS])
    for o in spans:
        o.weight.fill_(7.0)
    engine.publish_weights()
    assert engine.spans
    gradient = torch.cat(gradients[1]) - torch.cat(gradients[0])
    return gradient.numpy(), (terms[1] - terms[0]) / 0.1, engine.spans.by_head.copy(), engine.spans.keys(1000, None)


def test_the_penalty_against_differences() -> None:
    """All spans move at once, so the difference is the sum of their gradients; clamped, they are the largest."""
    arch = LLAMA2.replace({"layers": 2})
    for how in ({}, {"tp": 2, "dp": 2}):
        found = run(world(how), slopes, arch, how)
        whole = sum(float(gradient.sum()) for gradient, *_ in found)
        for gradient, difference, by_head, keys in found:
            np.testing.assert_allclose(gradient, PENALTY / 4 * SPAN.max, rtol=1e-4)
            assert difference == pytest.approx(whole, rel=1e-4) == 2 * PENALTY * SPAN.max
            assert by_head.tolist() == [[SPAN.max] * 4] * 2
            assert keys == [(64 * 2, 1000)] * 2


def _stages(alone: str, stopped: str) -> list[str]:
    """Both stages of one run, and the first of another one, which is stopped and goes on."""
    said = [stage(alone, "small", []), stage(alone, "large", [])]
    return said + [stage(stopped, "small", [], stop) for stop in (5, None)]


def test_stages(corpus: Path, tmp_path: Path) -> None:
    """From DP2 to TP2, with more heads, wider and deeper: certified, resumed bit for bit, FLOPs by what heads see, a
    picture, and an export."""
    spans = {"max": 24, "ramp": 4, "penalty": 1e-6}
    runs = [
        curriculum(corpus, tmp_path / name, model={"span": spans}, train={**RULES, "tokens": 8 * 256})
        for name in ("alone", "stopped")
    ]
    assert run(2, _stages, *map(str, runs)) == [[""] * 4] * 2
    alone, stopped = (path.parent / "run" for path in runs)
    same(state(alone / "small/checkpoints"), state(stopped / "small/checkpoints"))
    small, large = (history.load_stage(alone / name) for name in ("small", "large"))
    left_out = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "model_tflops_per_second_per_gpu")
    again = history.load_stage(stopped / "small")
    for one, other in zip(*(h.series("span_max_0") + h.series("span_0_0") for h in (small, again)), strict=True):
        assert {k: v for k, v in one.items() if k not in left_out} == {
            k: v for k, v in other.items() if k not in left_out
        }
    last = small.series("loss")[-1]
    assert 0 < max(last[f"span_mean_{block}"] for block in (0, 1)) < max(last["span_max_0"], last["span_max_1"]) < 24
    assert 1e-3 > last["span_loss"] > 0
    (event,) = large.events
    assert event.certificate is not None
    assert event.certificate.preserved
    assert event.new.span == event.old.span == Span(24, 4)
    before, after = (h.series("span_0_0")[place] for h, place in ((small, -1), (large, 0)))
    for old, new in enumerate((0, 1, 3, 4)):  # each group has a head more
        assert after[f"span_0_{new}"] == before[f"span_0_{old}"]
    assert report([str(alone)]) == 0
    assert (alone / "spans.png").stat().st_size > 5000
    assert "## How far heads see\n\n- **small**: " in (alone / "report.md").read_text()
    assert export_hf([str(alone / "small"), str(tmp_path / "export")]) == 0
    assert shape_of(tmp_path / "export") == event.old

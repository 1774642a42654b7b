"""Layers of several kinds, and layers that several blocks share, on real ranks: against the reference model, and one
layout against another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growth import Architecture
from pretrain.data.samples import part
from pretrain.engine.frozen import Frozen
from pretrain.engine.megatron import Numerics
from pretrain.estimate.flops import hardware_flops
from pretrain.families.parameters import parameters, spanning
from pretrain.kernels import fused
from pretrain.layout import fragments
from tests.distributed import ranks
from tests.distributed import test_dropout as test_dropout_of
from tests.distributed.harness import run
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_flops import ON_CPU
from tests.distributed.test_gradients import check_gradient
from tests.distributed.test_growth_on_load import same
from tests.distributed.test_kernels import agree
from tests.distributed.test_layouts import LAYOUTS, assemble, world

HOW: dict[str, Any] = {"kinds": ("attention", "mlp", "layer"), "calls": (0, 0, 1, 2, 1, 2)}
"""A layer that blocks next to each other call, and two that blocks far from each other do."""
LLAMA2, TIED, ENCODER = (arch.replace(**HOW) for arch in (ranks.GQA, GPT2, BERT))
OTHERS = [pytest.param(arch, marks=pytest.mark.long) for arch in (TIED, ENCODER)]
ALL = pytest.mark.parametrize("arch", [LLAMA2, *OTHERS], ids=lambda arch: arch.family)
INTERLEAVED = {"pp": 2, "pipeline": "Ett|t|tt|tL"}


@pytest.mark.parametrize(
    ("arch", "how", "precision"),
    [
        (LLAMA2, {}, "fp32"),
        pytest.param(LLAMA2, LAYOUTS["tp2-sp"], "fp32", marks=pytest.mark.long),
        pytest.param(LLAMA2, LAYOUTS["dp2"], "bf16", marks=pytest.mark.long),
        (LLAMA2, INTERLEAVED, "fp32"),
        (LLAMA2, {"tp": 2, "pp": 2, "dp": 2, "sequence_parallel": True}, "fp32"),
        (LLAMA2, {"pp": 3, "pipeline": [2, 1, 3]}, "fp32"),  # a rank that holds none of some shared layers
        (TIED, LAYOUTS["tp2-pp2"], "fp32"),
        pytest.param(ENCODER, LAYOUTS["pp2"], "bf16", marks=pytest.mark.long),
    ],
    ids=lambda x: getattr(x, "family", None) or str(x),
)
def test_the_gradient_is_the_reference_models(arch: Architecture, how: dict[str, Any], precision: str) -> None:
    check_gradient(arch, how, precision)


def copies(arch: Architecture, how: dict[str, Any]) -> Any:
    """The (loss, grad norm)s of three steps, what this rank would write, and its copies of shared layers."""
    engine = ranks.engine_for(arch, how)
    ranks.begin(engine)
    losses = ranks.train(engine, ranks.batches(arch, 3))
    held = {name: p.detach().numpy().copy() for name, _, p in engine._spanning if p is not None}
    return losses, ranks.collected(engine), held


@ALL
def test_copies_stay_the_same(arch: Architecture) -> None:
    """Three steps on two pipeline ranks are those of one process, and both ranks' copies agree bit for bit."""
    ((expected, whole, _),) = run(1, copies, arch, {})
    (losses, first, one), (_, second, other) = run(2, copies, arch, LAYOUTS["pp2"])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert one.keys() == other.keys() == {p.pieces[0].tensor for p in spanning(arch, ranks.layout(arch, {"pp": 2}), 0)}
    assert one
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name
    trained = assemble(arch, [first, second])
    for key, value in assemble(arch, [whole]).items():
        np.testing.assert_allclose(trained[key], value, atol=2e-3 if key[0] == "weight" else 1e-5, err_msg=str(key))


@ALL
def test_arithmetic_describes_what_was_built(arch: Architecture) -> None:
    how = {"tp": 2, "pp": 2, "dp": 2, "pipeline": INTERLEAVED["pipeline"]}
    layout = ranks.layout(arch, how)
    for rank, names, mapped, marked in run(world(how), ranks.geometry, arch, how):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(arch, layout, pp_rank, tp_rank)
        assert names == [p.name for p in table]
        assert marked == [p.dim is not None for p in table]
        assert mapped == [(f.index, f.start, f.numel, f.offset) for f in fragments(table, layout.dp, dp_rank)]


@ALL
def test_kernels_and_recomputation(arch: Architecture) -> None:
    agree(arch, LAYOUTS["pp2"], "fp32", "full", compiled=False)


def test_dropout() -> None:
    """Each block drops by its own number, whoever else calls its layer."""
    drops = Numerics(dropout=0.1, attention_dropout=0.2)
    ((expected, _),) = run(1, test_dropout_of.trained, TIED, {}, drops)
    how = replace(drops, recompute="full", compile=True)
    for losses, _ in run(2, test_dropout_of.trained, TIED, INTERLEAVED, how):
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def counted(arch: Architecture, recompute: str, frozen: frozenset[Any]) -> Any:
    """(values before, after a step, its FLOPs) with frozen parts."""
    fused.observer = lambda kernel, args: kernel.eager(*args)
    engine = ranks.engine_for(arch, {"pp": 2}, Numerics("fp32", recompute), clip=0.0)
    ranks.begin(engine)
    if frozen:
        engine.freeze(Frozen(frozen))
    before = ranks.collected(engine)
    (batch,) = ranks.batches(arch, 1)
    counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
    with counter:
        engine.train_step(part(batch, 0, 1), 1e-2)
    return before, ranks.collected(engine), counter.get_total_flops()


@pytest.mark.parametrize(
    ("arch", "recompute", "frozen"),
    [
        (LLAMA2, "selective", ()),
        (ENCODER, "full", ()),
        (LLAMA2, "none", ("embedding", 0)),
        pytest.param(TIED, "full", ("embedding", 0, 2), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_flops_and_frozen_layers(arch: Architecture, recompute: str, frozen: tuple[Any, ...]) -> None:
    """What is counted is what torch counts; a frozen layer rests in all blocks that call it."""
    found = run(2, counted, arch, recompute, frozenset(frozen))
    flops = sum(rank[2] for rank in found) / ranks.GLOBAL_BATCH / ranks.SEQ_LEN
    expected = hardware_flops(arch, ranks.SEQ_LEN, recompute=recompute, frozen=frozen)
    if recompute == "none" or not frozen:
        assert expected == pytest.approx(flops, rel=2e-2)
    before, after = (assemble(arch, [rank[i] for rank in found]) for i in (0, 1))
    for (kind, name), value in after.items():
        layer = arch.tensor(name).layer
        rests = layer in frozen if layer is not None else "embedding" in frozen and "wte" in name
        if kind == "weight" and (rests or layer is not None):
            assert np.array_equal(value, before[kind, name]) == rests, name


def test_a_checkpoint_has_a_shared_layer_once_and_goes_on_under_another_layout(tmp_path: Any) -> None:
    how, root = {"tp": 2, "pp": 2}, tmp_path / "run"
    written = run(4, ranks.trained_and_saved, LLAMA2, how, 2, str(root))
    saved = assemble(LLAMA2, [rank[1] for rank in written])
    assert torch.Size(saved["weight", "model.layers.2.mlp.up_proj.weight"].shape) == (48, 32)
    (path,) = (folder for folder in root.iterdir() if folder.name.startswith("step-"))
    ((before, losses, _),) = run(1, ranks.loaded, LLAMA2, {}, str(path), 2, None)
    same(assemble(LLAMA2, [before]), saved)
    other = run(2, ranks.loaded, LLAMA2, {"pp": 2, "pipeline": [1, 5]}, str(path), 2, None)
    np.testing.assert_allclose(other[0][1], losses, rtol=1e-5)

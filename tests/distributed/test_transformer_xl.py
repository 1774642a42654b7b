"""Transformer-XL on real ranks: every layout is one process, which computes the reference model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from growth import Architecture, Box
from pretrain.engine.megatron import Numerics
from pretrain.estimate import flops
from pretrain.families import reference
from pretrain.kernels import fused
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_dropout import steps
from tests.distributed.test_growth_on_load import same
from tests.distributed.test_layouts import LAYOUTS, assemble

SIZES = {"vocab": 101, "hidden": 32, "layers": 3, "heads": 4, "head_dim": 6, "ffn": 48, "sinusoid": 20}
XL = Architecture("transformer_xl", SIZES, {"norm_eps": 1e-3})
SHAPES = ("tp2", "tp2-sp", "pp2", "dp2")
CASES = {
    "plain": Numerics(),
    "kernels": Numerics(compile=True),
    "selective": Numerics(recompute="selective"),
    "full": Numerics(recompute="full", compile=True),
    "dropout": Numerics(dropout=0.2, attention_dropout=0.2),
    "dropout in kernels": Numerics(dropout=0.2, attention_dropout=0.2, compile=True, recompute="selective"),
}


def _trained(numerics: Numerics, how: dict[str, Any]) -> Any:
    """(values before, losses and gradient norms of some steps, values after)."""
    engine = ranks.engine_for(XL, how, numerics)
    ranks.begin(engine)
    before = ranks.collected(engine)
    return before, steps(engine, 0, 3), ranks.collected(engine)


def _one_process() -> Any:
    """(what training gives, by case; logits of the first batch before it; FLOPs of its passes forward and back)."""
    fused.observer = lambda kernel, args: kernel.eager(*args)
    engine, batch = ranks.engine_for(XL, {}), ranks.batches(XL, 1)[0]
    ranks.begin(engine)
    logits = engine.logits(batch)
    assert logits is not None
    with FlopCounterMode(display=False) as counter:
        engine.backward(batch)
    return {name: _trained(each, {}) for name, each in CASES.items()}, logits.numpy(), counter.get_total_flops()


@pytest.fixture(scope="module")
def one_process() -> Any:
    return run(1, _one_process)[0]


def _each(names: tuple[str, ...]) -> Any:
    fused.observer = lambda kernel, args: kernel.eager(*args)
    return {
        name: (_trained(Numerics(), LAYOUTS[name]), _trained(CASES["dropout in kernels"], LAYOUTS[name]))
        for name in names
    }


def test_agrees_with_one_process(one_process: Any) -> None:
    """Bitwise the same initial tensors; losses and gradient norms of three clipped steps to fp32 rounding, with dropout
    too, which drops the same elements."""
    cases, *_ = one_process
    found = run(2, _each, SHAPES)
    for name in SHAPES:
        for i, case in enumerate(("plain", "dropout")):
            before, losses, after = cases[case]
            same(assemble(XL, [rank[name][i][0] for rank in found]), assemble(XL, [before]))
            for rank in found:
                np.testing.assert_allclose(rank[name][i][1], losses, rtol=1e-5, err_msg=f"{name} {case}")
            whole = assemble(XL, [after])
            for key, value in assemble(XL, [rank[name][i][2] for rank in found]).items():
                # Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
                atol = 2e-3 if key[0] == "weight" else 1e-5
                np.testing.assert_allclose(value, whole[key], atol=atol, err_msg=f"{name} {case} {key}")


def test_kernels_and_recomputation_change_nothing(one_process: Any) -> None:
    cases, *_ = one_process
    for name in ("kernels", "selective", "full"):
        np.testing.assert_allclose(cases[name][1], cases["plain"][1], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(cases["dropout in kernels"][1], cases["dropout"][1], rtol=1e-5)
    assert abs(cases["dropout"][1][0][0] - cases["plain"][1][0][0]) > 1e-4


def test_the_engine_computes_the_reference_model(one_process: Any) -> None:
    cases, ours, _ = one_process
    values = assemble(XL, [cases["plain"][0]])

    def read(kind: str, tensor: str, box: Box) -> torch.Tensor:
        return torch.from_numpy(values[kind, tensor][box.slices()])

    batch = ranks.batches(XL, 1)[0]
    theirs = reference.logits(read, XL, batch["inputs"]).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    loss = reference.objective(read, XL, batch, torch.float64)
    assert abs(cases["plain"][1][0][0] - float(loss)) <= 1e-5 * float(loss)


def test_flops(one_process: Any) -> None:
    """Those of tokens, and W_R r, which is made of each micro-batch and has a gradient of W_R alone."""
    *_, counted = one_process
    s, micro_batches = XL.sizes, ranks.GLOBAL_BATCH // ranks.MICRO_BATCH
    of_distances = 2 * 2 * (ranks.SEQ_LEN + 1) * s["heads"] * s["head_dim"] * s["sinusoid"] * s["layers"]
    expected = flops.hardware_flops(XL, ranks.SEQ_LEN) * ranks.GLOBAL_BATCH * ranks.SEQ_LEN
    assert counted - micro_batches * of_distances == pytest.approx(expected, rel=1e-2)

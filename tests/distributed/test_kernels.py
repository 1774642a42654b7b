"""Models made of kernels against the same models without, in whole training steps of real ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growth import Architecture
from pretrain.engine.megatron import Numerics
from pretrain.kernels import fused
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_layouts import world

STEPS = 3
OFF = {"fp32": 1e-5, "bf16": 2e-2}  # losses and gradient norms, relative: rounding of the precision
FAMILIES = [ranks.GQA, GPT2, BERT]
needs_compiler = pytest.mark.skipif(bool(fused.lacking("cpu")), reason=f"NOT TESTED: {fused.lacking('cpu')}")


def trained(arch: Architecture, how: dict[str, Any], precision: str, recompute: str, compiled: bool) -> Any:
    """(losses and gradient norms, validation losses, logits) of a model without kernels, and of one with them."""
    from torch._inductor import config

    config.compile_threads = 1  # a pool of processes takes longer to start
    if not compiled:
        fused.observer = lambda kernel, args: kernel.eager(*args)
    found = []
    for kernels in (False, True):
        engine = ranks.engine_for(arch, how, Numerics(precision, recompute, compile=kernels))
        ranks.begin(engine)
        steps = ranks.train(engine, ranks.batches(arch, STEPS))
        batch = ranks.batches(arch, 1)[0]
        logits = engine.logits(batch)
        found.append((steps, engine.evaluate(batch), None if logits is None else logits.numpy()))
        engine.free()
    return found


def untouched(arch: Architecture, how: dict[str, Any]) -> int:
    """How many kernels a training step of a model without kernels calls."""
    called = []
    fused.observer = lambda kernel, args: (called.append(kernel.name), kernel.eager(*args))[1]
    engine = ranks.engine_for(arch, how, Numerics("bf16"))
    ranks.begin(engine)
    ranks.train(engine, ranks.batches(arch, 1))
    return len(called)


def agree(arch: Architecture, how: dict[str, Any], precision: str, recompute: str, compiled: bool) -> None:
    for plain, kernels in run(world(how), trained, arch, how, precision, recompute, compiled):
        np.testing.assert_allclose(kernels[0], plain[0], rtol=OFF[precision])
        assert kernels[1] == pytest.approx(plain[1], rel=OFF[precision])
        if plain[2] is not None:
            np.testing.assert_allclose(kernels[2], plain[2], atol=OFF[precision] * np.abs(plain[2]).max() * 10)


@pytest.mark.parametrize(
    ("arch", "how", "precision", "recompute"),
    [
        (ranks.GQA, {"tp": 2, "pp": 2, "sequence_parallel": True}, "fp32", "selective"),
        pytest.param(ranks.GQA, {"pp": 2, "pipeline": "Et|t|t|L"}, "fp32", "full", marks=pytest.mark.long),
        (GPT2, {"tp": 2, "sequence_parallel": True}, "fp32", "full"),
        (BERT, {"tp": 2, "pp": 2}, "bf16", "none"),
        pytest.param(BERT, {"pp": 2}, "fp32", "selective", marks=pytest.mark.long),
    ],
    ids=lambda value: value.family if isinstance(value, Architecture) else None,
)
def test_layouts_and_recomputation(arch: Architecture, how: dict[str, Any], precision: str, recompute: str) -> None:
    """What the kernels compute, operation by operation, wherever a model may be cut and computed again."""
    agree(arch, how, precision, recompute, compiled=False)


def test_nothing_is_compiled_that_was_not_asked_for() -> None:
    """Nor is a kernel called: of a model without kernels, in bf16, on several tensor-parallel ranks."""
    assert run(2, untouched, ranks.GQA, {"tp": 2, "sequence_parallel": True}) == [0, 0]


@needs_compiler
@pytest.mark.parametrize(
    ("arch", "tp", "precision"),
    [
        pytest.param(arch, tp, precision, marks=[] if (arch, tp, precision) in QUICK else pytest.mark.long)
        for QUICK in [[(ranks.GQA, 2, "fp32")]]
        for arch in FAMILIES
        for tp in (1, 2)
        for precision in ("fp32", "bf16")
    ],
    ids=lambda value: value.family if isinstance(value, Architecture) else None,
)
def test_compiled(arch: Architecture, tp: int, precision: str) -> None:
    """Every family compiled, alone and cut in two."""
    agree(arch, {"tp": tp}, precision, "none", compiled=True)

"""LayerDrop: the same blocks are left out under every layout, and when a pass is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growth import Architecture
from pretrain.config import LayerDrop
from pretrain.data.samples import part
from pretrain.engine.dropout import step_key
from pretrain.engine.frozen import Frozen
from pretrain.engine.megatron import Numerics
from pretrain.kernels import fused
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_dropout import resumed, steps
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_layouts import LAYOUTS, assemble, world

STEPS = 5
HALF = Numerics(layer_drop=LayerDrop(0.5))
SHARED = GPT2.replace({"layers": 2}, kinds=("layer", "mlp"), calls=(0, 1, 0))
SUBLAYERS = Numerics(layer_drop=LayerDrop(0.5, sublayers=True), dropout=0.1)


def trained(arch: Architecture, cases: list[tuple[dict[str, Any], Numerics]], frozen: Frozen | None = None) -> Any:
    """By case: (losses and gradient norms of some steps, values after the first)."""
    found = []
    fused.observer = lambda kernel, args: kernel.eager(*args)
    for how, numerics in cases:
        engine = ranks.engine_for(arch, how, numerics)
        ranks.begin(engine)
        if frozen:
            engine.freeze(frozen)
        losses = steps(engine, 0, 1)
        after = ranks.collected(engine)
        found.append((losses + steps(engine, 1, STEPS - 1), after))
        engine.free()
    return found


@pytest.fixture(scope="module")
def one_process() -> Any:
    """By architecture: the runs of one process, which recomputes nothing and has no kernels, for HALF and SUBLAYERS."""
    found: dict[Architecture, Any] = {}

    def reference(arch: Architecture) -> Any:
        if arch not in found:
            (found[arch],) = run(1, trained, arch, [({}, HALF), ({}, SUBLAYERS)])
        return found[arch]

    return reference


def of(name: str, numerics: Numerics, **how: Any) -> tuple[dict[str, Any], Numerics]:
    return LAYOUTS[name], replace(numerics, **how)


@pytest.mark.parametrize(
    ("arch", "cases"),
    [
        (BERT, [of("tp2", HALF, recompute="selective"), of("dp2", SUBLAYERS, recompute="full")]),
        (
            ranks.GQA,
            [
                of("pp2-uneven", HALF, compile=True),
                of("pp2-interleaved", SUBLAYERS, recompute="full", compile=True),
                of("tp2-sp", SUBLAYERS, recompute="full"),
            ],
        ),
        (SHARED, [of("pp2-uneven", SUBLAYERS), of("pp2-interleaved", HALF, recompute="selective")]),
        (ranks.GQA, [of("tp2-pp2", HALF, recompute="full")]),
    ],
    ids=["bert", "llama2", "shared and of two kinds", "four ranks"],
)
def test_layouts_kernels_and_recomputation(arch: Architecture, cases: Any, one_process: Any) -> None:
    """Losses, gradient norms and the gradient, as the first step's moments have it, are those of one process. Of three
    or four blocks half are left out: many a pipeline rank has nothing to do."""
    found = run(world(cases[0][0]), trained, arch, cases)
    for number, (_, numerics) in enumerate(cases):
        losses, after = one_process(arch)[numerics.layer_drop.sublayers]
        for theirs in found:
            np.testing.assert_allclose(theirs[number][0], losses, rtol=1e-5)
        expected = assemble(arch, [after])
        largest = max(float(np.abs(value).max()) for key, value in expected.items() if key[0] == "exp_avg")
        for key, value in assemble(arch, [theirs[number][1] for theirs in found]).items():
            if key[0] == "exp_avg":
                np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-5 * largest, err_msg=str(key))


def test_frozen_parts() -> None:
    """A pipeline rank whose trained blocks are all left out has nothing to differentiate, and none before it waits."""
    frozen = Frozen(frozenset({"embedding", 0, "head"}))
    (alone,) = run(1, trained, ranks.GQA, [({}, HALF)], frozen)
    cases = [of("pp2", HALF), of("pp2-uneven", HALF, recompute="full"), of("pp2-interleaved", HALF)]
    for found in run(2, trained, ranks.GQA, cases, frozen):
        for losses, _ in found:
            np.testing.assert_allclose(losses, alone[0][0], rtol=1e-5)


def resumed_and_rechecked(arch: Architecture, folder: str) -> Any:
    """(what `resumed` gives, loss and differences of a first step whose passes are made twice)."""
    found = resumed(arch, HALF, folder)
    engine = ranks.engine_for(arch, {"dp": 2}, HALF)
    ranks.begin(engine)
    batch = part(ranks.batches(arch, 1)[0], engine.dp_rank, 2)
    again = engine.train_step(batch, 1e-2, recheck=True, key=step_key(1, "first", 0))
    return found, again.loss, again.unlike


def test_a_resume_and_a_second_pass_leave_out_the_same(tmp_path: Path) -> None:
    """Bit for bit, with no generator's state in the checkpoint."""
    for (whole, parts), loss, unlike in run(2, resumed_and_rechecked, GPT2, str(tmp_path)):
        assert whole[0] == parts[0]
        assert all(map(np.array_equal, whole[1], parts[1]))
        assert (loss, unlike) == (whole[0][0][0], ())


def without_a_key(arch: Architecture) -> Any:
    """Of a model that leaves blocks out: (loss and gradient norm without a key, of a plain model, with a key), and what
    parts of the model had no gradient in a step in which nothing ran."""
    found = []
    for numerics in (HALF, Numerics()):
        engine = ranks.engine_for(arch, {}, numerics)
        ranks.begin(engine)
        batch = ranks.batches(arch, 1)
        found.append((engine.evaluate(batch[0]), ranks.train(engine, batch)))
        engine.free()
    engine = ranks.engine_for(arch, {}, Numerics(layer_drop=LayerDrop(1 - 1e-9)))
    ranks.begin(engine)
    engine.backward(ranks.batches(arch, 1)[0], 0)
    names = [p.name for (p, _), reached in zip(engine.parameters, engine.reached(), strict=True) if not reached.any()]
    return found, names, [p.name for p, _ in engine.parameters if ".layers." in p.name], engine.ran(12, 0)


@pytest.mark.parametrize("arch", [ranks.GQA, BERT], ids=lambda arch: arch.family)
def test_what_does_not_run_has_no_gradient(arch: Architecture) -> None:
    """And without a key, as in a certificate, and in validation the model is whole, bit for bit."""
    (((dropping, plain), unreached, layers, ran),) = run(1, without_a_key, arch)
    assert dropping == plain
    assert unreached == layers
    assert not ran.any()

"""Dropout: the same elements are dropped under every layout, and when a pass is made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growth
from growth import Architecture
from pretrain.checkpoint import Reader
from pretrain.data.samples import part
from pretrain.engine.dropout import step_key
from pretrain.engine.engine import Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import fill, publish
from pretrain.kernels import fused
from pretrain.state import State
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_layouts import LAYOUTS, assemble, world

STEPS = 3
DROPS = Numerics(dropout=0.1, attention_dropout=0.2)


def steps(engine: Engine, first: int, count: int) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the steps from number `first` on."""
    found = []
    for number, batch in list(enumerate(ranks.batches(engine.arch, first + count)))[first:]:
        mine = part(batch, engine.dp_rank, engine.layout.dp)
        result = engine.train_step(mine, 1e-2, key=step_key(1, "first", number))
        found.append((result.loss, result.grad_norm))
    return found


def trained(arch: Architecture, how: dict[str, Any], numerics: Numerics) -> Any:
    """(losses and gradient norms of some steps, values after the first)."""
    fused.observer = lambda kernel, args: kernel.eager(*args)
    engine = ranks.engine_for(arch, how, numerics)
    ranks.begin(engine)
    losses = steps(engine, 0, 1)
    after = ranks.collected(engine)
    losses += steps(engine, 1, STEPS - 1)
    return losses, after


@pytest.fixture(scope="module")
def one_process() -> Any:
    """By architecture: the run of one process that recomputes nothing and has no kernels."""
    found: dict[Architecture, Any] = {}

    def reference(arch: Architecture) -> Any:
        if arch not in found:
            (found[arch],) = run(1, trained, arch, {}, DROPS)
        return found[arch]

    return reference


@pytest.mark.parametrize(
    ("arch", "name", "numerics"),
    [
        (BERT, "tp2", DROPS),
        (GPT2, "tp2-sp", replace(DROPS, compile=True)),
        (ranks.GQA, "tp2-sp", replace(DROPS, recompute="selective")),
        (GPT2, "pp2-interleaved", replace(DROPS, recompute="full")),
        (BERT, "pp2-uneven", replace(DROPS, recompute="selective", compile=True)),
        (ranks.GQA, "dp2", replace(DROPS, recompute="full", compile=True)),
    ],
    ids=lambda value: getattr(value, "family", value) if not isinstance(value, Numerics) else None,
)
def test_layouts_kernels_and_recomputation(arch: Architecture, name: str, numerics: Numerics, one_process: Any) -> None:
    """Losses, gradient norms and the gradient, as the first step's moments have it, are those of one process."""
    how = LAYOUTS[name]
    losses, after = one_process(arch)
    found = run(world(how), trained, arch, how, numerics)
    for theirs, _ in found:
        np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    expected = assemble(arch, [after])
    largest = max(float(np.abs(value).max()) for key, value in expected.items() if key[0] == "exp_avg")
    for key, value in assemble(arch, [r[1] for r in found]).items():
        if key[0] == "exp_avg":
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-5 * largest, err_msg=str(key))


def without_a_key(arch: Architecture) -> Any:
    """The same passes of a model that drops and is given no key, of one that has no dropout but a key, and of one that
    drops: (losses and gradient norms, validation)."""
    found = []
    for numerics, first in ((DROPS, None), (Numerics(), 0), (DROPS, 0)):
        engine = ranks.engine_for(arch, {}, numerics)
        ranks.begin(engine)
        batch = ranks.batches(arch, 1)
        validation = engine.evaluate(batch[0])
        found.append((ranks.train(engine, batch) if first is None else steps(engine, first, 1), validation))
    return found


@pytest.mark.parametrize("arch", [ranks.GQA, BERT], ids=lambda arch: arch.family)
def test_nothing_is_dropped_without_a_key_nor_in_validation(arch: Architecture) -> None:
    """Bit for bit: a growth certificate and a validation are of the model as it is; only a keyed step drops."""
    ((certified, plain, dropping),) = run(1, without_a_key, arch)
    assert certified == plain
    assert dropping[1] == plain[1]
    assert dropping[0] != plain[0]
    assert dropping[0][0][0] == pytest.approx(plain[0][0][0], rel=0.1)  # the mean is kept


def resumed(arch: Architecture, numerics: Numerics, folder: str) -> list[Any]:
    """(losses and gradient norms, values) of four steps at once, and of two, a checkpoint, another engine, and two."""
    found = []
    for stops in ((4,), (2, 2)):
        engine, done = ranks.engine_for(arch, {"dp": 2}, numerics), 0
        state, losses = ranks.begin(engine), list[tuple[float, float]]()
        for count in stops:
            if done:
                ranks.save(engine, state, folder)
                engine.free()
                engine = ranks.engine_for(arch, {"dp": 2}, numerics)
                with Reader(Path(folder) / "step-00000000") as reader:
                    state = State.from_reader(reader)
                    fill(engine, growth.identity(arch), reader)
                publish(engine, state)
            losses += steps(engine, done, count)
            done += count
        found.append((losses, [values for *_, values in ranks.collected(engine)]))
        engine.free()
    return found


def test_a_resume_drops_what_the_run_would_have(tmp_path: Path) -> None:
    """Bit for bit, with no generator's state in the checkpoint."""
    for whole, parts in run(2, resumed, GPT2, DROPS, str(tmp_path)):
        assert whole[0] == parts[0]
        assert all(map(np.array_equal, whole[1], parts[1]))

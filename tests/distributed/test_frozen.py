"""Frozen parts: bit for bit what they were, without the FLOPs of their gradients, and no difference to the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

import growth
from growth import Generations
from pretrain.data.samples import part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.frozen import Frozen, part_of
from pretrain.engine.megatron import Numerics
from pretrain.engine.shards import fill, publish
from pretrain.estimate.flops import hardware_flops
from pretrain.families.common import linear
from pretrain.kernels import fused
from pretrain.layout import Layout
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.distributed.harness import run
from tests.distributed.ranks import collected
from tests.distributed.test_flops import ARCHITECTURES, ON_CPU, SAMPLES, SEQ_LEN, samples_of
from tests.distributed.test_layouts import assemble

TOP, BETWEEN = ((0, 2), (1, 2)), ((0, 1), (1, 1), (0, 1), (1, 1))
"""Births of four layers: two new ones on top (MSLT), and one after each old one (LLaMA-Pro)."""


def trained(family: str, layers: Any, how: dict[str, Any], numerics: Numerics, freeze: bool) -> Any:
    """(values, grad norms, FLOPs of the last step on this rank) after three steps at rate 0 of all that is old."""
    # Kernels run as they are written, and products as torch's: a mode that counts FLOPs sees no compiled ones.
    fused.observer = lambda kernel, args: kernel.eager(*args)
    linear.available = lambda: False
    arch = ARCHITECTURES[family]
    layout = Layout.make(arch.layers, **how)
    engine = Engine(arch, layout, numerics, Adam(clip=0.0), seq_len=SEQ_LEN, micro_batch=1)
    plan = growth.initial(arch, 3, 0.05)
    generations = Generations({**Generations.first(arch).births, "layers": layers}, 2)
    births = (Birth(0, "first", 7), Birth(0, "second", 0))
    fill(engine, plan, None)
    publish(engine, State(arch, generations, births, Progress(), None))
    if freeze:
        engine.freeze(Frozen.of(arch, generations, {0}))
    before = collected(engine)
    norms = []
    for _ in range(3):
        counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)
        with counter:
            norms.append(engine.train_step(part(samples_of(family), engine.dp_rank, layout.dp), [0.0, 1e-2]).grad_norm)
    return before, collected(engine), norms, counter.get_total_flops(), list(engine.adam.steps)


LAYOUTS: list[tuple[str, Any, dict[str, Any], Numerics]] = [
    ("llama2", TOP, {"tp": 2, "sequence_parallel": True}, Numerics()),
    ("gpt2", BETWEEN, {"dp": 2}, Numerics()),
    ("llama2", TOP, {"pp": 4}, Numerics()),
    ("gpt2", TOP, {"pp": 2, "pipeline": (1, 1, 1, 1)}, Numerics()),
    ("bert", TOP, {"tp": 2, "pp": 2}, Numerics()),
    ("bert", BETWEEN, {"pp": 2}, Numerics("fp32", "full")),
    ("gpt2", TOP, {"dp": 2}, Numerics("bf16")),
    ("llama2", TOP, {"tp": 2, "sequence_parallel": True}, Numerics(compile=True)),
    ("bert", BETWEEN, {"pp": 2}, Numerics("fp32", "full", compile=True)),
]


@pytest.mark.parametrize(("family", "layers", "how", "numerics"), LAYOUTS, ids=str)
def test_frozen_parts(family: str, layers: Any, how: dict[str, Any], numerics: Numerics) -> None:
    arch = ARCHITECTURES[family]
    world = how.get("tp", 1) * how.get("pp", 1) * how.get("dp", 1)
    ranks = run(world, trained, family, layers, how, numerics, True)
    slow = run(world, trained, family, layers, how, numerics, False)
    new = [i for i, g in enumerate(np.repeat(*np.array(layers).T)) if g]
    parts = {"embedding", "head", *range(4)} - set(new)
    before, after, expected = (
        assemble(arch, [rank[i] for rank in found]) for i, found in ((0, ranks), (1, ranks), (1, slow))
    )
    tolerance = 1e-2 if numerics.precision == "bf16" else 1e-4
    for (kind, name), value in after.items():
        if part_of(arch, name) in parts:
            assert np.array_equal(value, before[kind, name]), (kind, name)
        else:
            assert not np.array_equal(value, before[kind, name]), (kind, name)
            scale = np.abs(expected[kind, name]).max()
            assert np.abs(value - expected[kind, name]).max() <= tolerance * scale, (kind, name)
    flops = sum(rank[3] for rank in ranks) / SAMPLES / SEQ_LEN
    count = hardware_flops(arch, SEQ_LEN, recompute=numerics.recompute, tp=how.get("tp", 1), frozen=parts)
    if numerics.recompute == "none":
        assert count == pytest.approx(flops, rel=2e-2)
    assert flops < 0.9 * sum(rank[3] for rank in slow) / SAMPLES / SEQ_LEN
    assert all(rank[4] == [7, 3] for rank in ranks)
    assert all(rank[2][0] < slow[0][2][0] for rank in ranks)  # the norm of what is trained

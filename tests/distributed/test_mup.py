"""muP in the engine: activations that do not depend on the width, and a grown model that goes on as the small one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import growth
from growth import Architecture, Box
from growth.mup import Mup
from pretrain.checkpoint import Reader
from pretrain.data.samples import part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.shards import fill, publish
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_layouts import assemble
from tests.distributed.test_stage import curriculum, stage
from tests.distributed.test_stage import state as checkpoint

WIDTHS = (64, 128, 256, 512)
STD = 0.1


def model(family: str, width: int) -> Architecture:
    """Heads of 16 channels, and as many of them as the width takes."""
    sizes = {"vocab": 64, "hidden": width, "layers": 2, "heads": width // 16, "head_dim": 16, "ffn": 2 * width}
    sizes |= {"kv_heads": width // 32} if family == "llama2" else {"positions": ranks.SEQ_LEN}
    return Architecture(family, sizes)


def engine_of(arch: Architecture, mup: Mup | None, how: dict[str, Any]) -> Engine:
    adam = Adam(clip=0.0, mup=mup)
    return Engine(arch, ranks.layout(arch, how), ranks.FP32, adam, seq_len=ranks.SEQ_LEN, micro_batch=2)


def begun(arch: Architecture, mup: Mup | None, how: dict[str, Any]) -> tuple[Engine, State]:
    engine, plan = engine_of(arch, mup, how), growth.initial(arch, 3, STD, mup)
    state = State(arch, plan.generations(), (Birth(0, "first", 0),), Progress(), None)
    fill(engine, plan, None)
    publish(engine, state)
    return engine, state


def activations(engine: Engine, probe: Any) -> dict[str, Tensor]:
    """What each branch adds to the residual stream, and the logits."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: found.__setitem__(name, output[0])

    ends = ("linear_proj", "linear_fc2")
    handles = [m.register_forward_hook(keep(n)) for n, m in engine.chunks[0].named_modules() if n.endswith(ends)]
    logits = engine.logits(probe)
    assert logits is not None
    for handle in handles:
        handle.remove()
    return {**{name: x.detach().clone() for name, x in found.items()}, "logits": logits}


def change(before: Tensor, after: Tensor) -> float:
    return float((after - before).square().mean().sqrt())


def learned(family: str, width: int, mup: Mup | None) -> dict[str, float]:
    """By how much ten steps change each activation: the root of the mean square."""
    engine, _ = begun(model(family, width), mup, {})
    batch = ranks.batches(engine.arch, 1)[0]
    before = activations(engine, part(batch, 0, 3))
    for _ in range(10):
        engine.train_step(batch, 3e-3)
    after = activations(engine, part(batch, 0, 3))
    return {name: change(x, after[name]) for name, x in before.items()}


def checked(family: str) -> Any:
    """What is learned at each width with muP; and without it, at the first and the third."""
    return [learned(family, width, Mup(64)) for width in WIDTHS], [learned(family, WIDTHS[n], None) for n in (0, 2)]


def slopes(widths: Sequence[int], each: list[dict[str, float]]) -> dict[str, float]:
    """The power of the width that each change goes with."""
    return {name: float(np.polyfit(np.log(widths), np.log([x[name] for x in each]), 1)[0]) for name in each[0]}


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_coordinate_check(family: str) -> None:
    """Yang et al., 2022, appendix D.1: over widths 64 to 512 every layer learns as much in ten steps; without muP it
    learns more the wider it is, which the same check sees. (What a fresh head says falls with the width, and so do
    logits, a little: it is to vanish.) At the base width both are the same, bit for bit."""
    ((each, without),) = run(1, checked, family)
    flat, steep = slopes(WIDTHS, each), slopes(WIDTHS[::2], without)
    assert len(flat) == 5
    assert max(abs(slope) for slope in flat.values()) < 0.25, flat
    assert min(slope for name, slope in steep.items() if name != "logits") > 0.75, steep
    assert steep["logits"] > 0.4, steep
    assert without[0] == each[0]


def deep(layers: int, mup: Mup | None) -> tuple[float, float]:
    """By how much ten steps change the residual stream after the last layer, and the logits."""
    engine, _ = begun(model("llama2", 64).replace({"layers": layers}), mup, {})
    batch, found = ranks.batches(engine.arch, 1)[0], list[Tensor]()
    engine.chunks[0].decoder.layers[-1].register_forward_hook(lambda m, args, output: found.append(output[0].detach()))
    logits = [engine.logits(part(batch, 0, 3))]
    before = found[-1]
    for _ in range(10):
        engine.train_step(batch, 1e-2)
    logits.append(engine.logits(part(batch, 0, 3)))
    return change(before, found[-1]), change(*logits)


def deepened() -> Any:
    return [deep(layers, Mup(64, layers=2)) for layers in (2, 16)], deep(16, Mup(64))


def test_depth() -> None:
    """CompleteP, from 2 to 16 layers: what is learned does not grow with the depth, and logits learn as much; with
    factors of the width alone the stream grows with the depth, which the same check sees."""
    (((shallow, complete), width_alone),) = run(1, deepened)
    assert 0.4 < complete[0] / shallow[0] < 1.1
    assert complete[1] == pytest.approx(shallow[1], rel=0.1)
    assert width_alone[0] / shallow[0] > 3


BASE = Mup(32, ffn=64)


def wider(arch: Architecture) -> Architecture:
    return arch.replace({axis: 2 * arch.sizes[axis] for axis in ("hidden", "heads", "kv_heads", "ffn")})


def small_then_large(root: str) -> Any:
    """(losses of a small model after a save, values at the end; losses of the same model grown at the save, values
    at the end): the small one on two data-parallel ranks, the large one on two tensor-parallel ones."""
    engine, state = begun(model("llama2", 64), BASE, {"dp": 2})
    data = ranks.batches(engine.arch, 6)
    ranks.train(engine, data[:3])
    ranks.save(engine, state, root)
    small = ranks.train(engine, data[3:]), ranks.collected(engine)
    engine.free()
    plan = growth.between(state.arch, wider(state.arch), POLICY, seed=1, init_std=STD, mup=BASE)
    large = engine_of(plan.new, BASE, {"tp": 2})
    with Reader(Path(root) / "step-00000000") as reader:
        fill(large, plan, reader)
        kept = State.from_reader(reader)
        publish(large, replace(kept, arch=plan.new, generations=plan.generations(kept.generations)))
    return small, (ranks.train(large, data[3:]), ranks.collected(large))


POLICY = {key: {"operator": "replicate", "snr_db": None} for key in ("hidden", "heads", "ffn")}


def test_a_grown_engine_goes_on_as_the_small_one(tmp_path: Path) -> None:
    """Under ZeRO, another layout and weight decay, with the factors of the wider model, to what fp32 can tell."""
    found = run(2, small_then_large, str(tmp_path))
    small, large = found[0][0][0], found[0][1][0]
    assert [loss for loss, _ in large] == pytest.approx([loss for loss, _ in small], rel=1e-5)
    old = model("llama2", 64)
    before = assemble(old, [values for (_, values), _ in found])
    after = assemble(wider(old), [values for _, (_, values) in found])
    plan = growth.between(old, wider(old), POLICY, seed=1, init_std=STD)
    for name, tensor in plan.new.tensors().items():
        expected = plan.evaluate(
            name, Box.whole(tensor.shape), lambda kind, n, box: torch.from_numpy(before[kind, n])[box.slices()]
        )
        off = np.abs(after["weight", name] - expected.numpy()).max()
        assert off <= 1e-3 * np.abs(expected.numpy()).max(), name


def test_a_stage_that_grows_and_resumes(corpus: Path, tmp_path: Path) -> None:
    """A curriculum with the key: several generations with factors of their own, and
    a resume in the middle that is the same bit for bit."""
    train = {"seq_len": 32, "global_batch": 8, "micro_batch": 4, "lr": 3e-3, "precision": "fp32", "eval_bytes": 1024}
    train |= {"tokens": 4 * 32 * 8, "mup": {"base_hidden": 16, "base_layers": 1}}
    model_of = {"family": "gpt2", "vocab": 350, "layers": 2, "head_dim": 8, "ffn": 64}
    stages = [
        {"name": "small", "model": {**model_of, "hidden": 32, "heads": 4}},
        {"name": "large", "model": {**model_of, "hidden": 48, "heads": 6, "layers": 3}, "grow": {"new_lr": 2.0}},
    ]
    path = curriculum(corpus, tmp_path / "alone", train=train, stages=stages)
    assert run(1, stage, str(path), "small", []) == [""]
    shutil.copytree(tmp_path / "alone/run", tmp_path / "cut/run")
    cut = curriculum(corpus, tmp_path / "cut", train=train, stages=stages)
    assert run(1, stage, str(path), "large", []) == [""]
    assert run(1, stage, str(cut), "large", [], 2) == [""]
    assert run(1, stage, str(cut), "large", []) == [""]
    one, other = (checkpoint(tmp_path / which / "run/large/checkpoints") for which in ("alone", "cut"))
    assert all(np.array_equal(value, other[key]) for key, value in one.items())
    event = json.loads((tmp_path / "alone/run/large/events/step-00000000.json").read_text())
    assert event["plan"]["mup"] == {"hidden": 16, "heads": 0, "ffn": 0, "layers": 1}
    assert event["certificate"]["preserved"]
    assert event["certificate"]["dead_share"] == 0

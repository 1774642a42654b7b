"""Stages with a memory: killed, resumed, moved to another layout and grown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import growth
from growth import Box
from pretrain.checkpoint import MEMORY, Reader, find
from pretrain.data import documents
from pretrain.data.samples import Samples, in_lanes, part
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.families.common.reference import Remembering
from pretrain.families.reference import objective
from tests.distributed import ranks
from tests.distributed.harness import run, run_killed
from tests.distributed.test_remembering import END, one_by_one
from tests.distributed.test_stage import curriculum, losses, stage


def passed_over() -> list[bool]:
    """Whether samples that were passed over are remembered as those of steps are, in each block; whether some lanes
    forget; and all of them, where a step is not made: its text is behind them."""
    engine = Engine(ranks.GQA, ranks.layout(ranks.GQA, {}), Numerics(), Adam(), seq_len=16, micro_batch=2, memory=24)
    ranks.begin(engine)
    assert engine.memory
    data = ranks.batches(ranks.GQA, 2)
    for samples in data:
        engine.train_step(samples, 0.0, remember=True)
    expected = [dict(kept) for kept in engine.memory.kept]
    engine.memory.empty(ranks.GLOBAL_BATCH)
    for samples in data:
        engine.remember(samples)
    same = [torch.equal(a[layer], b[layer]) for a, b in zip(expected, engine.memory.kept, strict=True) for layer in a]
    engine.memory.forget(np.arange(ranks.GLOBAL_BATCH) < 3)
    forgotten = engine.memory.filled.tolist() == [0] * 3 + [24] * 9
    engine.train_step(data[0], 0.0, veto=lambda *_: "a spike", remember=True)
    return [*same, forgotten, engine.memory.filled.tolist() == [0] * 12]


def test_passing_over_text() -> None:
    assert all(run(1, passed_over)[0])


def stored(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """All that the newest checkpoint of a stage holds."""
    path = find(folder / "checkpoints").path
    assert path
    with Reader(path) as reader:
        tensors = reader.manifest.tensors.items()
        return {
            (kind, name): reader.read(kind, name, Box.whole(entry.shape)).numpy()
            for name, entry in tensors
            for kind in entry.boxes
        }


def test_a_curriculum(corpus: Path, tmp_path: Path) -> None:
    """Under a ramp of the batch: killed and resumed it is bit for bit the one that was left alone; and on another
    layout nearly so. A wider model goes on from what was remembered; one that is made of copies reads text again."""
    model = {"vocab": 350, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64, "head_dim": 8}
    given: dict[str, Any] = {
        "data": {"corpus": str(corpus), "validation_fraction": 0.05},
        "train": {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": "fp32"}
        | {"ramp_from": 4, "ramp_tokens": 3 * 4 * 32, "memory": 48, "eval_memory": 64, "tokens": 52 * 32}
        | {"eval_interval": 4, "eval_bytes": 4096},
        "stages": [
            {"name": "small", "model": model, "parallel": {"dp": 2}},
            {
                "name": "wide",
                "model": {**model, "hidden": 48, "layers": 3},
                "parallel": {"tp": 2, "sequence_parallel": True},
                "grow": {"hidden": "zero", "layers": "identity"},
                "train": {"ramp_from": 0, "ramp_tokens": 0, "tokens": 2 * 8 * 32},
            },
            {
                "name": "deep",
                "model": {**model, "hidden": 48, "layers": 6},
                "parallel": {"dp": 2},
                "grow": {"layers": {"operator": "stack", "init": "copy"}},
                "train": {"ramp_from": 0, "ramp_tokens": 0, "tokens": 8 * 32},
            },
        ],
    }
    alone, cut = (curriculum(corpus, tmp_path / which, **given) for which in ("alone", "cut"))
    assert run(2, stage, str(alone), "small", []) == ["", ""]
    run_killed(2, "pretrain.engine.engine:Engine.train_step", 6, stage, str(cut), "small", [])
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    assert run(2, stage, str(cut), "small", []) == ["", ""]
    small = tmp_path / "alone/run/small"
    one, other = stored(small), stored(tmp_path / "cut/run/small")
    assert one.keys() == other.keys()
    assert one[MEMORY, "memory.2"].shape == (8, 48, 32)
    assert one[MEMORY, "memory.filled"].tolist() == [48.0] * 8
    assert all(np.array_equal(value, other[key]) for key, value in one.items())
    assert losses(small) == losses(tmp_path / "cut/run/small")
    moved = curriculum(corpus, tmp_path / "moved", **given)
    otherwise = ["--parallel.tp", "2", "--parallel.dp", "1", "--train.micro_batch", "4"]
    assert run(2, stage, str(moved), "small", otherwise) == ["", ""]
    np.testing.assert_allclose(losses(tmp_path / "moved/run/small"), losses(small), rtol=1e-4)
    for name, memory, error in (("wide", "mapped", 1e-5), ("deep", "recomputed", None)):
        assert run(2, stage, str(alone), name, []) == ["", ""]
        event = json.loads((tmp_path / f"alone/run/{name}/events/step-00000000.json").read_text())
        certificate = event["certificate"]
        assert certificate["memory"] == memory
        assert error is None or certificate["error"] <= error


def held_out(apart: bool) -> Samples:
    """Some text; whose documents do not see each other."""
    text = dict(ranks.batches(ranks.GQA, 1)[0])
    if not apart:
        return text
    ends = torch.rand(text["inputs"].shape, generator=torch.Generator().manual_seed(2)) < 0.08
    text["inputs"] = text["inputs"].masked_fill(ends, END)
    return documents.in_lanes(documents.apart(text, END), END)


def validated(how: dict[str, Any], apart: bool = False) -> float:
    """The held-out loss of some text, which goes on from sample to sample, behind 24 places; summed over labels."""
    engine = Engine(ranks.GQA, ranks.layout(ranks.GQA, how), Numerics(), Adam(), seq_len=16, micro_batch=2, memory=8)
    ranks.begin(engine)
    samples = in_lanes(held_out(apart), engine.dp_rank, engine.layout.dp, 2)
    return sum(engine.evaluate(samples, 24).values())


def test_validation() -> None:
    """Two lanes, each of whose labels counts once, behind the text before it in its lane; also under a pipeline."""
    arch, text = ranks.GQA, ranks.batches(ranks.GQA, 1)[0]
    plan = growth.initial(arch, 3, 0.05)
    memory: list[torch.Tensor] = []
    loss = 0.0
    for step in range(ranks.GLOBAL_BATCH // 2):
        rows = [step, ranks.GLOBAL_BATCH // 2 + step]
        own = Remembering({name: each[rows] for name, each in text.items()}, memory)
        mean = objective(lambda kind, name, box: plan.evaluate(name, box, None), arch, own, torch.float64)  # type: ignore[arg-type]
        loss += mean.item() * own["labels"].numel()
        before = memory or [x[:, :0] for x in own.inputs]
        memory = [torch.cat(pair, 1)[:, -24:] for pair in zip(before, own.inputs, strict=True)]
    assert run(1, validated, {}) == pytest.approx([loss], rel=1e-6)
    assert run(2, validated, {"pp": 2}) == pytest.approx([loss] * 2, rel=1e-6)
    text = held_out(apart=True)
    steps = [part(in_lanes(text, 0, 1, 2), step, len(text["inputs"]) // 2) for step in range(len(text["inputs"]) // 2)]
    loss = sum(mean * steps[0]["labels"].numel() for mean, _ in one_by_one(arch, 24, steps))
    assert run(1, validated, {}, True) == pytest.approx([loss], rel=1e-6)

"""Clipping across a growth event: the norm before and after on one batch, and a threshold that follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pretrain.stage.apply_schedule
from pretrain.engine.engine import Engine
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

STEP = 8 * 32  # tokens
MODEL = {"vocab": 350, "hidden": 33, "layers": 1, "heads": 3, "kv_heads": 3, "head_dim": 8, "ffn": 65}


def thresholds(path: str, name: str) -> list[float]:
    """A stage's, in the order in which its engines got them."""
    found: list[float] = []
    clip_at = Engine.clip_at

    def told(engine: Engine, norm: float) -> None:
        found.append(norm)
        clip_at(engine, norm)

    pretrain.stage.apply_schedule.Engine.clip_at = told  # type: ignore[method-assign]
    assert stage(path, name, []) == ""
    return found


def test_the_threshold_follows_the_norm(corpus: Path, tmp_path: Path) -> None:
    """A copy of the layers keeps no function and no norm; an identity keeps both, also from a model that tensor
    parallelism cannot cut. The factor is kept with the event, and holds in the stages after it."""
    stages: list[dict[str, Any]] = [
        {"name": "odd", "model": MODEL, "parallel": {"dp": 2}},
        {"name": "wide", "model": {**MODEL, "heads": 4, "kv_heads": 4, "ffn": 66}, "parallel": {"tp": 2}},
        {"name": "deep", "model": {**MODEL, "heads": 4, "kv_heads": 4, "ffn": 66, "layers": 3}, "parallel": {"pp": 2}},
    ]
    stages[1]["grow"] = {"clip": "scale"}
    stages[2]["grow"] = {"clip": "scale", "layers": {"operator": "stack", "noise": 0.5}}
    train = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": "fp32", "clip": 0.5}
    train |= {"tokens": 2 * STEP, "eval_bytes": 2048}
    path = curriculum(corpus, tmp_path, stages=stages, train=train)
    assert run(2, stage, str(path), "odd", []) == ["", ""]
    ratios = []
    for name in ("wide", "deep"):
        (found, other) = run(2, thresholds, str(path), name)
        event = json.loads((tmp_path / f"run/{name}/events/step-00000000.json").read_text())
        certificate = event["certificate"]
        ratios.append(certificate["grad_norm_after"] / certificate["grad_norm_before"])
        assert event["clip_scale"] == ratios[-1]
        assert found == other == [pytest.approx(0.5 * ratios[0] * (ratios[1] if name == "deep" else 1), rel=1e-12)]
    assert ratios[0] >= 1 - 1e-4  # what is new adds to the norm of what is old
    assert abs(ratios[1] - 1) > 0.05
    assert run(2, thresholds, str(path), "odd") == [[], []]  # finished

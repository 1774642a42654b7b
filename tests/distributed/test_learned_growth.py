"""LiGO in a curriculum: a stage learns the maps of its growth event at its start, and goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import config
from pretrain.errors import UserError
from pretrain.estimate import cost
from pretrain.estimate.flops import event_flops, learning_flops
from pretrain.estimate.speed import GPUS
from pretrain.report import history
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage, state

SMALL = {"vocab": 350, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64, "head_dim": 8}
LARGE = {**SMALL, "vocab": 381, "hidden": 48, "layers": 3, "heads": 6}
STEPS = 12


def learning(corpus: Path, output: Path, **grow: Any) -> Path:
    """A stage of DP2 out of which one of TP2 grows as LiGO does, in few steps."""
    grow = {"recipe": "ligo", "learn": {"steps": STEPS, "batch": 2, "lr": 1e-2}, **grow}
    train = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": "fp32", "tokens": 512}
    stages = [
        {"name": "small", "model": SMALL, "parallel": {"dp": 2}},
        {"name": "large", "model": LARGE, "parallel": {"tp": 2}, "grow": grow},
    ]
    return curriculum(corpus, output, stages=stages, train={**train, "eval_interval": 4, "eval_bytes": 2048})


def _stages(straight: str, stopped: str) -> list[str]:
    """One run, and another one whose second stage is stopped after its first ten steps on the factors."""
    said = [stage(path, "small", []) for path in (straight, stopped)]
    return [*said, stage(straight, "large", []), stage(stopped, "large", [], 1), stage(stopped, "large", [])]


def test_ligo_in_a_curriculum(corpus: Path, tmp_path: Path) -> None:
    paths = [learning(corpus, tmp_path / name) for name in ("straight", "stopped")]
    assert run(2, _stages, *map(str, paths)) == [[""] * 5] * 2
    one, other = (path.parent / "run" / "large" for path in paths)
    assert state(one / "checkpoints").keys() == state(other / "checkpoints").keys()
    for key, value in state(one / "checkpoints").items():
        assert np.array_equal(value, state(other / "checkpoints")[key]), key

    decision = json.loads((one / "decisions/learned.json").read_text())
    assert decision["held_out"]["learned"] < decision["held_out"]["start"]
    event = json.loads((one / "events/step-00000000.json").read_text())
    learned = [name for name in event["certificate"]["operators"] if name.endswith("dense")]
    assert learned == ["layers: dense", "hidden: dense", "heads: dense"]
    assert event["certificate"]["dead_share"] == 0

    loaded = config.load(paths[0])
    small, large = loaded.stages
    old, new = small.architecture(), large.architecture()
    first = old.replace({"vocab": new.sizes["vocab"]})
    assert decision["flops"] == learning_flops(first, new, 32, large.grow.learn)
    before, after = history.load(paths[0].parent / "run")
    layout = cost.of_stage(large, small, gpu=GPUS["a100-80gb"], gpus_per_node=2).layout
    spent = decision["flops"] + event_flops(old, new, layout, 32, 2)
    assert after.series("validation_loss")[0]["flops"] == pytest.approx(before.end["flops"] + spent)
    planned = [each.flops for each in cost.of_curriculum(loaded, gpu=GPUS["a100-80gb"], gpus_per_node=2)]
    assert sum(planned) == pytest.approx(after.end["flops"])


def test_what_does_not_fit(corpus: Path, tmp_path: Path) -> None:
    for changes, why in (
        ({"trial": {"candidates": [{"layers": "stack"}]}}, "grow.learn: its maps take the place of operators"),
        ({"learn": {"steps": 1, "only": ["ffn"]}}, "grow.learn.steps: 1, but of ffn nothing grows"),
    ):
        with pytest.raises(UserError, match=why):
            config.load(learning(corpus, tmp_path, **changes))

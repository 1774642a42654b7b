"""Stages with a memory: killed, resumed, moved to another layout and grown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from growth import Box
from pretrain.checkpoint import MEMORY, Reader, find
from tests.distributed.harness import run, run_killed
from tests.distributed.test_stage import curriculum, losses, stage


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
    layout nearly so. A wider model goes on from what was remembered; one that is made of copies begins anew."""
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
    for name, memory, error in (("wide", "mapped", 1e-5), ("deep", "forgotten", None)):
        assert run(2, stage, str(alone), name, []) == ["", ""]
        event = json.loads((tmp_path / f"alone/run/{name}/events/step-00000000.json").read_text())
        certificate = event["certificate"]
        assert certificate["memory"] == memory
        assert error is None or certificate["error"] <= error

"""Whole stages through the training loop: grown, stopped, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml

from growth import Box, GrowthError
from pretrain import config
from pretrain.checkpoint import KINDS, Reader, find, is_done
from pretrain.errors import UserError
from pretrain.event import plan
from pretrain.event.certify import BF16_TOLERANCE
from pretrain.stage.train import train
from tests.distributed.harness import run


def curriculum(corpus: Path, output: Path, precision: str = "fp32", **changes: Any) -> Path:
    """Two stages: DP2, then wider, deeper and with more vocabulary under TP2."""
    found: dict[str, Any] = {
        "name": "run",
        "seed": 5,
        "output": str(output),
        "data": {"corpus": str(corpus), "validation_fraction": 0.05, "window": 16},
        "train": {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": precision}
        | {"tokens": 8 * 32 * 8, "eval_interval": 4, "eval_bytes": 4096},
        "checkpoint": {"interval": 3},
        "log": {"interval": 1, "wandb": False},
        "stages": [
            {
                "name": "small",
                "model": {"vocab": 350, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}
                | {"head_dim": 8},
                "parallel": {"dp": 2},
            },
            {
                "name": "large",
                "model": {"vocab": 381, "hidden": 48, "layers": 3, "heads": 6, "kv_heads": 2, "ffn": 96}
                | {"head_dim": 8},
                "parallel": {"tp": 2},
            },
        ],
    }
    for key, value in changes.items():
        found[key] = value
    path = output / "curriculum.yaml"
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(found))
    return path


def stage(path: str, name: str, overrides: list[str], stop_after: int | None = None) -> str:
    """One rank of a stage; the user's error, or nothing."""
    loaded = config.load(path)
    asked = iter(range(1_000_000))
    try:
        chosen = loaded.override(loaded.stage(name), overrides)
        plan.check(loaded, chosen, dist.get_world_size())
        train(loaded, chosen, lambda: next(asked) + 1 == stop_after)
    except (UserError, GrowthError) as error:
        return str(error)
    return ""


def state(checkpoints: Path) -> dict[tuple[str, str], np.ndarray]:
    found = find(checkpoints)
    assert found.path
    with Reader(found.path) as reader:
        return {
            (kind, name): reader.read(kind, name, Box.whole(entry.shape)).numpy()
            for kind in KINDS
            for name, entry in reader.manifest.tensors.items()
        }


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if "loss" in r]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", BF16_TOLERANCE)])
def test_stages_grow_stop_and_resume(corpus: Path, tmp_path: Path, precision: str, tolerance: float) -> None:
    """A curriculum that is stopped in each stage and resumed is bit for bit the one that was left alone."""
    alone, cut = (curriculum(corpus, tmp_path / which, precision=precision) for which in ("alone", "cut"))
    for name in ("small", "large"):
        assert run(2, stage, str(alone), name, []) == ["", ""]
        assert run(2, stage, str(cut), name, [], 4) == ["", ""]
        assert not is_done(tmp_path / "cut/run" / name)
        assert run(2, stage, str(cut), name, []) == ["", ""]
        assert is_done(tmp_path / "cut/run" / name)
        one, other = (state(tmp_path / which / "run" / name / "checkpoints") for which in ("alone", "cut"))
        for key, value in one.items():
            assert np.array_equal(value, other[key]), key
        assert losses(tmp_path / "alone/run" / name) == losses(tmp_path / "cut/run" / name)
        assert len(losses(tmp_path / "cut/run" / name)) == 8
    event = json.loads((tmp_path / "alone/run/large/events/step-00000000.json").read_text())
    certificate = event["certificate"]
    assert certificate["claims"]
    assert certificate["error"] <= tolerance
    assert certificate["dead_share"] == 0
    assert event["seconds"] > 0
    finished = (tmp_path / "alone/run/small/DONE").read_text()
    assert run(2, stage, str(alone), "small", []) == ["", ""]
    assert (tmp_path / "alone/run/small/DONE").read_text() == finished  # a finished stage is left alone

    text = run(2, stage, str(cut), "large", ["--train.lr", "1e-2"])[0]
    assert text == ""  # done: nothing to resume


def test_errors_of_the_user(corpus: Path, tmp_path: Path) -> None:
    """Each names what is wrong, where, and what to do, and nothing is written."""
    path = curriculum(corpus, tmp_path)
    (text,) = set(run(2, stage, str(path), "large", []))
    assert "'small' has not finished" in text
    assert "stage.sh" in text
    (text,) = set(run(3, stage, str(path), "small", []))
    assert "parallel.dp 2" in text
    assert "there are 3" in text
    missing = curriculum(corpus, tmp_path / "missing", data={"corpus": str(tmp_path / "nothing")})
    (text,) = set(run(2, stage, str(missing), "small", []))
    assert "is not a prepared corpus" in text
    assert not (tmp_path / "run").exists()


def test_a_resume_may_not_change_the_run(corpus: Path, tmp_path: Path) -> None:
    path = curriculum(corpus, tmp_path)
    assert set(run(2, stage, str(path), "small", [], 4)) == {""}
    (text,) = set(run(2, stage, str(path), "small", ["--train.lr", "1e-2"]))
    assert "train.lr: 0.003 in the checkpoint, 0.01 now" in text
    assert set(run(1, stage, str(path), "small", ["--parallel.dp", "1"])) == {""}  # another layout is fine
    assert is_done(tmp_path / "run/small")


def test_positions_grow_under_sequence_parallelism(corpus: Path, tmp_path: Path) -> None:
    """From an odd number of them, which the ranks cannot share; the marker of the parent was made by hand."""
    train = {"global_batch": 4, "micro_batch": 2, "lr": 3e-3, "precision": "fp32", "eval_bytes": 1024, "tokens": 360}
    model = {"family": "gpt2", "vocab": 350, "hidden": 32, "layers": 1, "heads": 4, "ffn": 64}
    layout = {"tp": 2, "sequence_parallel": True}
    stages = [
        {"name": "short", "model": model, "train": {"seq_len": 15}},
        {"name": "long", "model": model, "train": {"seq_len": 30}, "parallel": layout},
    ]
    path = curriculum(corpus, tmp_path, train=train, stages=stages)
    assert run(1, stage, str(path), "short", []) == [""]
    (tmp_path / "run/short/DONE").write_text("")
    assert run(2, stage, str(path), "long", []) == ["", ""]
    event = json.loads((tmp_path / "run/long/events/step-00000000.json").read_text())
    assert event["certificate"]["operators"] == ["positions: random"]
    assert event["certificate"]["preserved"]
    assert event["certificate"]["bits_per_byte_before"] is None

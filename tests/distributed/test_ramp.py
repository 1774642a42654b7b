"""A ramp of the batch size through the training loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

RAMP = {"global_batch": 12, "ramp_from": 4, "ramp_by": 4, "ramp_tokens": 512}


def _records(folder: Path) -> list[tuple[int, float]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(r["tokens"], r["loss"]) for r in found if "loss" in r]


def test_it_follows_the_samples_whatever_the_layout(corpus: Path, tmp_path: Path) -> None:
    """Stopped on the ramp and resumed on one rank, the same steps see the same samples."""
    train = {"seq_len": 32, "micro_batch": 2, "lr": 3e-3, "precision": "fp32", "tokens": 2048, "eval_interval": 100}
    paths = [curriculum(corpus, tmp_path / name, train={**train, **RAMP}) for name in ("alone", "cut")]
    assert run(2, stage, str(paths[0]), "small", []) == ["", ""]
    assert run(2, stage, str(paths[1]), "small", [], 2) == ["", ""]
    assert run(1, stage, str(paths[1]), "small", ["--parallel.dp", "1"]) == [""]
    alone, cut = (_records(tmp_path / name / "run" / "small") for name in ("alone", "cut"))
    # Two steps of 4 samples, one of 8, then 12: samples of 32 tokens.
    assert [tokens for tokens, _ in alone] == [128, 256, 512, 896, 1280, 1664, 2048]
    assert [tokens for tokens, _ in cut] == [tokens for tokens, _ in alone]
    assert [loss for _, loss in cut] == pytest.approx([loss for _, loss in alone], rel=1e-4)

"""A moving average of the weights through stages: against the sum in plain torch, resumed, grown and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growth import Box, Plan
from pretrain.checkpoint import AVERAGE, STORED, Reader, find
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage
from tools.export_hf import main as export_hf

HALF_LIFE = 512  # tokens: two steps
STEPS = 4
PRECISIONS = ("fp32", "bf16")


def averaging(corpus: Path, output: Path, precision: str) -> Path:
    """Two stages of four steps, whose checkpoints are all kept: from DP2 to TP2, wider, deeper, with more words."""
    rules = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": precision}
    rules |= {"tokens": STEPS * 256, "eval_interval": 2, "eval_bytes": 2048, "schedule": "constant"}
    return curriculum(
        corpus,
        output,
        train={**rules, "average": {"half_life": HALF_LIFE}},
        checkpoint={"interval": 1, "keep": 20},
    )


def values(checkpoint: Path) -> dict[tuple[str, str], np.ndarray]:
    with Reader(checkpoint) as reader:
        return {
            (kind, name): reader.read(kind, name, Box.whole(entry.shape)).numpy()
            for kind in STORED
            for name, entry in reader.manifest.tensors.items()
        }


def newest(folder: Path) -> Path:
    found = find(folder / "checkpoints").path
    assert found
    return found


def _stages(alone: str, stopped: str) -> list[str]:
    """Both stages of one run, and the first of another one, which is stopped after its third step and goes on."""
    said = [stage(alone, "small", []), stage(alone, "large", ["--train.tokens", "256"])]
    return said + [stage(stopped, "small", [], stop) for stop in (3, None)]


@pytest.fixture(scope="module", params=PRECISIONS)
def runs(request: Any, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of these runs."""
    folder = tmp_path_factory.mktemp(request.param)
    paths = [averaging(corpus, folder / name, request.param) for name in ("alone", "stopped")]
    assert run(2, _stages, *map(str, paths)) == [[""] * 4] * 2
    return paths[0].parent / "run", paths[1].parent / "run"


def test_it_is_the_sum_and_survives_a_stop(runs: tuple[Path, Path]) -> None:
    """After each step it goes a part of the way to the masters; the loss of the average is measured beside theirs."""
    alone, stopped = (folder / "small" for folder in runs)
    steps = [values(alone / f"checkpoints/step-{step:08}") for step in range(1, STEPS + 1)]
    names = {name for kind, name in steps[0] if kind == "weight"}
    share = 1 - 0.5 ** (256 / HALF_LIFE)
    for name in names:
        expected = torch.from_numpy(steps[0][AVERAGE, name])
        for step in steps[1:]:
            expected = torch.lerp(expected, torch.from_numpy(step["weight", name]), share)
        torch.testing.assert_close(expected.numpy(), steps[-1][AVERAGE, name], rtol=1e-6, atol=1e-8)
    again = values(newest(stopped))
    assert all(np.array_equal(value, again[key]) for key, value in steps[-1].items())
    records = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (alone, stopped)]
    measured = [{r["step"]: r for r in each if "validation_loss" in r} for each in records]
    assert measured[0][0]["validation_average_loss"] == measured[0][0]["validation_loss"]
    for step in (2, STEPS):
        one, other = (each[step] for each in measured)
        assert one["validation_average_loss"] == other["validation_average_loss"] != one["validation_loss"]
        assert one["validation_loss"] == other["validation_loss"]
        assert one["validation_average_bits_per_byte"] > 0


def test_it_grows_as_the_weights_do(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The average of the grown model is what the plan makes of the average, with the same fresh rows, layers and
    channels: the average of the maps. An export has it in place of the weights."""
    folder = runs[0]
    with Reader(newest(folder / "small")) as parent, Reader(newest(folder / "large")) as child:
        assert child.manifest.format_version == 3
        plan = Plan.from_json(child.manifest.events[-1]["plan"])
        share = 1 - 0.5 ** (256 / HALF_LIFE)
        for name, tensor in plan.new.tensors().items():
            whole = Box.whole(tensor.shape)
            before = plan.evaluate(name, whole, parent.read_average)
            expected = torch.lerp(before, child.read("weight", name, whole), share)
            torch.testing.assert_close(child.read(AVERAGE, name, whole), expected, rtol=1e-6, atol=1e-8)
    assert export_hf([str(folder / "large"), str(tmp_path / "export"), "--average"]) == 0
    with Reader(newest(folder / "large")) as child:
        from safetensors.torch import load_file

        exported = load_file(tmp_path / "export" / "model.safetensors")["model.norm.weight"]
        assert torch.equal(exported, child.read(AVERAGE, "model.norm.weight", Box.whole(exported.shape)))

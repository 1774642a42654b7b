"""When to grow: at a plateau, at a formula's tokens, by trial. A run that is killed decides as one left alone does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain import config
from pretrain.checkpoint import find, is_done
from pretrain.stage import trial
from pretrain.stage.train import train
from tests.distributed.harness import run, run_killed
from tests.distributed.test_stage import curriculum, stage, state

MODEL = {"vocab": 350, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64}
STEP = 8 * 32  # tokens
PLATEAU = {"until": "plateau", "plateau": {"window": 2, "threshold": 0.02, "patience": 2}, "eval_interval": 1}


def two(corpus: Path, output: Path, small: dict[str, Any], large: dict[str, Any]) -> Path:
    """Two stages of one and two layers, with these keys of each."""
    stages = [
        {"name": name, "model": {**MODEL, "layers": layers}, **keys}
        for name, layers, keys in (("small", 1, small), ("large", 2, large))
    ]
    return curriculum(corpus, output, stages=stages)


def decision(folder: Path, name: str = "end") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "decisions" / f"{name}.json").read_text())
    return found


def timeless(value: Any) -> Any:
    """Without what depends on the time and on the folder of the run."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "config", "parent")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def same_weights(one: Path, other: Path) -> None:
    expected, found = state(one / "checkpoints"), state(other / "checkpoints")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.array_equal(value, found[key]), key


def test_a_plateau_ends_a_stage_wherever_it_was_killed(corpus: Path, tmp_path: Path) -> None:
    """Killed before the plateau, and between the decision and DONE; and the next stage starts where it ended."""
    small = {"train": {"tokens": 40 * STEP, **PLATEAU}}
    paths = [two(corpus, tmp_path / which, small, {"train": {"tokens": 2 * STEP}}) for which in ("alone", "cut")]
    assert run(1, stage, str(paths[0]), "small", []) == [""]
    run_killed(1, "pretrain.engine.engine:Engine.train_step", 5, stage, str(paths[1]), "small", [])
    run_killed(1, "pretrain.stage.run:mark_done", 1, stage, str(paths[1]), "small", [])
    alone, cut = (path.parent / "run/small" for path in paths)
    assert not is_done(cut)
    assert run(1, stage, str(paths[1]), "small", []) == [""]
    assert is_done(cut)
    found = decision(alone)
    assert found["by"] == "plateau"
    assert 5 <= found["step"] < 40
    assert len(found["reasons"]["losses"]) == found["step"]
    assert all(fall < 0.02 for fall in found["reasons"]["falls"])
    assert decision(cut) == found
    same_weights(alone, cut)
    assert run(1, stage, str(paths[0]), "large", []) == [""]
    manifest = find(alone.parent / "large/checkpoints").manifest
    assert manifest is not None
    assert manifest.progress["tokens"] == found["stage_tokens"] + 2 * STEP


def test_the_formula_ends_a_stage_wherever_it_was_killed(corpus: Path, tmp_path: Path) -> None:
    """For its next stage, the formula wants some thousand tokens."""
    small, large = {"train": {"tokens": 40 * STEP, "until": "gstack"}}, {"train": {"tokens": int(1e28)}}
    paths = [two(corpus, tmp_path / which, small, large) for which in ("alone", "cut")]
    assert run(1, stage, str(paths[0]), "small", []) == [""]
    run_killed(1, "pretrain.engine.engine:Engine.train_step", 6, stage, str(paths[1]), "small", [])
    assert run(1, stage, str(paths[1]), "small", []) == [""]
    alone, cut = (path.parent / "run/small" for path in paths)
    found = decision(alone)
    assert found["by"] == "gstack"
    assert found["stage_tokens"] - STEP < found["reasons"]["tokens_of_the_run"] <= found["stage_tokens"]
    assert 6 <= found["step"] < 40
    assert decision(cut) == found
    same_weights(alone, cut)


def test_a_trial_chooses_wherever_it_was_killed(corpus: Path, tmp_path: Path) -> None:
    """Under PP2, killed in the second candidate and between the choice and the first checkpoint: each candidate is
    tried once, on the same data, and the stage begins with the best of them."""
    wild = {"layers": {"operator": "stack", "noise": 3.0}}
    trial = {"steps": 3, "candidates": [wild, {"layers": "stack"}]}
    large = {"train": {"tokens": 2 * STEP}, "grow": {"trial": trial}, "parallel": {"pp": 2}}
    paths = [two(corpus, tmp_path / which, {"train": {"tokens": 4 * STEP}}, large) for which in ("alone", "cut")]
    for path in paths:
        assert run(1, stage, str(path), "small", []) == [""]
    assert run(2, stage, str(paths[0]), "large", []) == ["", ""]
    alone, cut = (path.parent / "run/large" for path in paths)
    run_killed(2, "pretrain.stage.trial:rates", 5, stage, str(paths[1]), "large", [])  # of the steps of candidates
    assert [each["candidate"] for each in decision(cut, "trial")["tried"]] == [wild]
    run_killed(2, "pretrain.stage.run:rates", 1, stage, str(paths[1]), "large", [])
    before = (cut / "decisions/trial.json").read_text()
    assert not (cut / "checkpoints").exists() or not list((cut / "checkpoints").glob("step-*"))
    assert run(2, stage, str(paths[1]), "large", []) == ["", ""]
    found = decision(alone, "trial")
    losses = [each["loss"] for each in found["tried"]]
    assert losses[0] > losses[1]
    assert found["chosen"] == {"layers": "stack"}
    assert timeless(decision(cut, "trial")) == timeless(found)
    assert json.loads(before) == decision(cut, "trial")  # nothing was tried again
    same_weights(alone, cut)
    manifests = [find(folder / "checkpoints").manifest for folder in (alone, cut)]
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert manifests[0].events[-1]["certificate"]["operators"] == manifests[1].events[-1]["certificate"]["operators"]
    flops = [each.progress["flops"] for each in manifests if each]
    assert flops[0] == pytest.approx(flops[1], rel=1e-12)
    assert flops[0] > sum(each["flops"] for each in found["tried"]) > 0


def stopping(path: str) -> list[str]:
    """One rank of a stage whose user makes STOP in its second candidate; what is in its folder then."""
    curriculum = config.load(path)
    folder, rates = curriculum.folder / "large", trial.rates

    def seen(*given: Any) -> list[float]:
        if (folder / "decisions/trial.json").exists():
            (folder / "STOP").touch()
        return rates(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "rates", seen)
        assert not train(curriculum, curriculum.stage("large"), lambda: False)
    return sorted(path.name for path in folder.iterdir())


def test_a_stop_during_a_trial(corpus: Path, tmp_path: Path) -> None:
    """It says who asked, so that the job is not requeued."""
    candidates = {"steps": 2, "candidates": [{"layers": "stack"}, {"layers": "interleave"}]}
    large = {"train": {"tokens": 2 * STEP}, "grow": {"trial": candidates}}
    path = two(corpus, tmp_path, {"train": {"tokens": STEP}}, large)
    assert run(1, stage, str(path), "small", []) == [""]
    assert run(1, stopping, str(path)) == [["STOPPED", "decisions", "heartbeat"]]
    assert run(1, stage, str(path), "large", []) == [""]
    assert is_done(tmp_path / "run/large")

"""Learned growth: from the command line to a grown checkpoint that needs the factors' file no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pretrain import config
from pretrain.checkpoint import Manifest
from pretrain.event import learn as learning
from pretrain.families.reference import objective
from pretrain.runtime.files import Lock
from tests.unit.pretrain.checkpoint.ranks import run_ranks
from tests.unit.tools.runs import Run
from tools.grow import main as grow
from tools.learn_growth import main
from tools.verify import main as verify


def with_policy(run: Run, path: Path, policy: dict[str, Any]) -> str:
    """The run's curriculum with another policy for the stage "large"."""
    document = yaml.safe_load(Path(run.config).read_text())
    document["stages"][1]["grow"] = policy
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_learned_and_grown(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learning helps on text that it has not seen, and the event can be measured again without the file."""
    file, target = tmp_path / "made" / "large.safetensors", tmp_path / "grown"
    command = [str(run.parent), str(file), "--config", run.config, "--stage", "large"]
    assert main([*command, "--steps", "12", "--batch", "4", "--lr", "1e-2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["losses"]) == 12
    assert told["held_out"]["learned"] < told["held_out"]["start"]
    options = {key: {o.split(".")[1] for o in load_file(file) if o.startswith(key)} for key in told["grow"]}
    assert options == {
        "layers": {"weights"},
        "hidden": {"write", "read"},
        "heads": {"query", "key", "value", "read"},
        "ffn": {"write", "gate", "read"},
    }
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err

    curriculum = with_policy(run, tmp_path / "mine.yaml", told["grow"])
    assert grow([str(run.parent), str(target), "--config", curriculum, "--stage", "large"]) == 0
    file.unlink()
    capsys.readouterr()
    assert verify([str(target), "--parent", str(run.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in found["checks"] if c["passed"]} >= {"plan", "content", "function", "dead"}
    assert found["certificate"]["operators"][:2] == ["layers: dense", "hidden: dense"]
    assert found["certificate"]["dead_share"] == 0
    assert Manifest.load(target).config["grow"]["ffn"] == told["grow"]["ffn"]


def test_stopped_and_started_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on where it was, to the same factors bit for bit; with another learning rate it begins anew."""
    calls, last = 0, 0

    def counted(*given: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return objective(*given, **named)

    def learn(name: str, lr: str = "1e-3", stop: int = 0) -> list[float]:
        nonlocal calls, last
        calls, last = 0, stop
        options = ["--config", run.config, "--stage", "large", "--steps", "14", "--batch", "2", "--lr", lr, "--json"]
        assert main([str(run.parent), str(tmp_path / name), *options]) == 0
        losses: list[float] = json.loads(capsys.readouterr().out)["losses"]
        return losses

    monkeypatch.setattr(learning, "objective", counted)
    losses, measured = learn("whole"), 2  # the held-out loss of copies and of what was learned
    assert calls == 14 + measured
    for name, lr, left in (("same", "1e-3", 4), ("other", "1e-2", 14)):
        with pytest.raises(KeyboardInterrupt):
            learn(name, stop=13)
        assert not (tmp_path / name).exists()
        again = learn(name, lr)
        assert calls == left + measured
        assert (again == losses) == (name == "same")
        assert (tmp_path / name).exists()
        assert not (tmp_path / f".{name}.progress").exists()
    same, whole = load_file(tmp_path / "same"), load_file(tmp_path / "whole")
    assert same.keys() == whole.keys()
    assert all(torch.equal(same[option], whole[option]) for option in whole)


def test_nothing_is_written(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither where learning diverges nor where another process learns the same."""
    file = tmp_path / "large.safetensors"
    command = [str(run.parent), str(file), "--config", run.config, "--stage", "large", "--batch", "2"]
    assert main([*command, "--lr", "1e30"]) == 2
    assert "take a smaller learning rate" in capfd.readouterr().err
    with Lock(tmp_path / ".large.safetensors.lock"):
        assert run_ranks(1, lambda rank: main([*command, "--steps", "1"]), tmp_path / "store") == [2]
    assert "must not write one folder" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".large", "large"))] == [".large.safetensors.lock"]


def test_a_part_of_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layers.safetensors"
    command = [str(run.parent), str(file), "--config", run.config, "--stage", "large", "--only", "layers"]
    assert main([*command, "--steps", "1", "--batch", "2"]) == 0
    assert f"layers: {{operator: dense, factors: {file}}}" in capsys.readouterr().out
    assert {name: tuple(m.shape) for name, m in load_file(file).items()} == {"layers.weights": (3, 2)}


def test_errors(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(policy: dict[str, Any]) -> str:
        path = with_policy(run, tmp_path / "mine.yaml", policy)
        config.load(path)  # an earlier stage may run before the factors are learned
        target = str(tmp_path / "out")
        assert grow([str(run.parent), target, "--config", path, "--stage", "large", "--no-certificate"]) == 2
        return capsys.readouterr().err

    file = tmp_path / "factors.safetensors"
    named = {"operator": "dense", "factors": str(file)}
    assert "is not there: learn the factors first" in error({"hidden": named})
    file.write_bytes(b"nothing")
    assert "no safetensors file" in error({"hidden": named})
    save_file({"hidden.write": torch.ones(40, 23), "hidden.read": torch.ones(40, 24)}, file)
    assert "hidden: write must be a matrix of 40 x 24" in error({"hidden": named})
    assert "has factors of hidden, none of ffn" in error({"ffn": named})
    save_file({"hidden.write": torch.ones(40, 24)}, file)
    assert "hidden: dense needs the option read" in error({"hidden": named})

    same = with_policy(run, tmp_path / "same.yaml", {})
    command = [str(run.parent), str(tmp_path / "f"), "--config", same, "--stage", "finer", "--only", "hidden"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--steps", "0"])
    assert "--steps: '0' is no whole number from 1 on" in capsys.readouterr().err
    assert main([str(run.parent), str(tmp_path / "f"), "--config", same, "--stage", "small"]) == 2
    assert "grows nothing that is learned" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()

"""Averages of checkpoints against the same sums in plain torch, and as checkpoints that other tools take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from growth import Box, Plan
from pretrain.checkpoint import Reader
from pretrain.checkpoint.manifest import plain
from tests.unit.tools.runs import Run, save
from tools.average import main
from tools.export_hf import main as export_hf
from tools.grow import main as grow
from tools.show import main as show
from tools.verify import main as verify

pytestmark = pytest.mark.parametrize("run", ["gqa"], indirect=True)


def averaged(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--samples", "4", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def whole(path: Path, kind: str = "weight") -> dict[str, torch.Tensor]:
    with Reader(path) as reader:
        tensors = reader.manifest.tensors
        return {name: reader.read(kind, name, Box.whole(entry.shape)).clone() for name, entry in tensors.items()}


def test_means(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of some checkpoints, evenly or with a decay; all else is of the last one."""
    stage = run.curriculum.stage("small")
    paths = [tmp_path / name / "step-00000020" for name in "abc"]
    for seed, path in enumerate(paths):
        save(stage, path, seed)
    a, b, c = map(whole, paths)
    names = list(map(str, paths))
    told = averaged(capsys, *names, "--output", str(tmp_path / "mean"))
    for name, value in whole(tmp_path / "mean").items():
        torch.testing.assert_close(value, (a[name] + b[name] + c[name]) / 3, rtol=1e-6, atol=1e-6)
    assert len(told["held_out_loss"]["before"]) == 3
    assert told["held_out_loss"]["after"] > 0
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, value in whole(tmp_path / "mean", kind).items():
            assert torch.equal(value, whole(paths[-1], kind)[name])
    averaged(capsys, *names, "--output", str(tmp_path / "ema"), "--ema", "0.9")
    for name, value in whole(tmp_path / "ema").items():
        expected = 0.9 * (0.9 * a[name] + 0.1 * b[name]) + 0.1 * c[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    averaged(capsys, *names, "--last", "2", "--output", str(tmp_path / "last"))
    for name, value in whole(tmp_path / "last").items():
        torch.testing.assert_close(value, (b[name] + c[name]) / 2, rtol=1e-6, atol=1e-6)

    assert averaged(capsys, *names, "--output", str(tmp_path / "mean"))["existed"]
    assert main([*names[:2], "--output", str(tmp_path / "mean")]) == 2
    assert "is something else" in capsys.readouterr().err
    assert show([str(tmp_path / "mean")]) == 0
    assert "weights of 3 checkpoints averaged (mean)" in capsys.readouterr().out
    assert verify([str(tmp_path / "mean")]) == 0
    assert export_hf([str(tmp_path / "mean"), str(tmp_path / "export")]) == 0
    assert "averaged (mean)" in (tmp_path / "export/README.md").read_text()


def test_between_before_and_after_growth(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent is mapped by the plan of the event; at 1 and 0 it is one of the two."""
    grown = tmp_path / "step-00000000"
    assert grow([str(run.folder), str(grown), "--config", run.config, "--stage", "large", "--no-certificate"]) == 0
    capsys.readouterr()
    with Reader(run.parent) as parent, Reader(grown) as reader:
        plan = Plan.from_json(reader.manifest.events[-1]["plan"])
        assert plain(plan.new.to_json()) == plain(reader.manifest.architecture)
        start = {n: plan.evaluate(n, Box.whole(t.shape), parent.read) for n, t in plan.new.tensors().items()}
        names = [str(run.parent), str(grown)]
        end = whole(grown)
        for t in (0.0, 0.25, 1.0):
            told = averaged(capsys, *names, "--output", str(tmp_path / f"at{t}"), "--between", str(t))
            for name, value in whole(tmp_path / f"at{t}").items():
                torch.testing.assert_close(value, (1 - t) * start[name] + t * end[name], rtol=1e-6, atol=1e-6)
        assert told["held_out_loss"]["after"] == pytest.approx(told["held_out_loss"]["before"][1])
    for wrong, why in (
        ([], "another shape"),
        (["--between", "2"], ""),
        (["--between", "0.5", "--last", "1"], "of two"),
    ):
        if why:
            assert main([*names, "--output", str(tmp_path / "no"), *wrong]) == 2
            assert why in capsys.readouterr().err
    assert main([*reversed(names), "--output", str(tmp_path / "no"), "--between", "0.5"]) == 2
    assert "has not grown from the model of" in capsys.readouterr().err
    assert main([str(run.parent), "--output", str(tmp_path / "no")]) == 2
    assert "an average is of several" in capsys.readouterr().err


def test_an_average_is_no_event_of_growth(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """verify --parent measures the growth before it, and asks for no certificate of the average."""
    grown = tmp_path / "step-00000000"
    assert grow([str(run.folder), str(grown), "--config", run.config, "--stage", "large", "--no-certificate"]) == 0
    capsys.readouterr()
    averaged(capsys, str(run.parent), str(grown), "--output", str(tmp_path / "mid"), "--between", "0.5")
    verify([str(tmp_path / "mid"), "--parent", str(run.parent), "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert "patches" not in {check["name"] for check in checks}

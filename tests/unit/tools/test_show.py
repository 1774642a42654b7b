"""What show says of a checkpoint, for people and for machines."""

import json
import shutil
from pathlib import Path

import pytest

from pretrain.checkpoint import Manifest
from tests.unit.tools.runs import Run, rewrite
from tools.grow import main as grow
from tools.show import main


def test_a_grown_checkpoint(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its shape, layout of files, generations, event and parent, whose hash is checked."""
    child = tmp_path / "grown"
    assert grow([str(run.parent), str(child), "--config", run.config, "--stage", "large"]) == 0
    capsys.readouterr()
    assert main([str(child), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = Manifest.load(child)
    assert told["hash"] == manifest.hash
    assert told["parameters"] == sum(part["parameters"] for part in told["parts"])
    assert sum(f["bytes"] for f in told["files"]) == sum(p.stat().st_size for p in child.glob("*.safetensors"))
    assert sum(f["boxes"] for f in told["files"]) == 3 * len(manifest.tensors)
    assert [g["stage"] for g in told["generations"]] == ["small", "large"]
    assert told["history"][0]["certificate"]["preserved"]
    (parent,) = told["ancestors"]
    assert (parent["hash"], parent["problem"]) == (Manifest.load(run.parent).hash, "")

    assert main([str(child), "--events"]) == 0
    text = capsys.readouterr().out
    assert "function preserved" in text
    assert "norm_eps: 0.001 to" in text
    assert "stage small, step 20, hash as recorded" in text


def test_lineage_of_a_run_that_was_moved(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parent is found beside the child; another checkpoint in its place is told apart; a missing one is said."""
    first = tmp_path / "first" / "small" / "checkpoints" / "step-00000020"
    shutil.copytree(run.parent, first)
    child = tmp_path / "first" / "large" / "checkpoints" / "step-00000000"
    assert grow([str(first), str(child), "--config", run.config, "--stage", "large", "--no-certificate"]) == 0
    (tmp_path / "first").rename(tmp_path / "second")

    def problem() -> str:
        capsys.readouterr()
        assert main([str(tmp_path / "second" / "large"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["ancestors"][0]["problem"]

    assert problem() == ""
    moved = tmp_path / "second" / "small" / "checkpoints" / "step-00000020"
    shutil.rmtree(moved)
    assert problem() == "not found here"
    rewrite(run.parent, moved, {}, norm_eps=0.5)
    assert "another checkpoint is at" in problem()


def test_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no checkpoint in it" in capsys.readouterr().err

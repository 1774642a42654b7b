"""Offline growth against growth on load, and the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from growth import Box, Generations, Plan
from pretrain.checkpoint import KINDS, Manifest, Reader, find
from pretrain.event.plan import grown, plan_of
from pretrain.state import State
from tests.unit.tools.runs import Run
from tools.grow import main
from tools.verify import main as verify


def test_the_same_as_growth_on_load(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bit of weights and moments, the generations, the cursor; and the stage would start from it."""
    assert main([str(run.folder), "--config", run.config, "--stage", "large", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["certificate"]["preserved"]
    assert told["certificate"]["dead_share"] == 0
    assert told["certificate"]["bits_per_byte_before"] == 2.5
    root = run.folder / "large" / "checkpoints"
    assert str(find(root).path) == told["target"] == str(root / "step-00000000")

    stage = run.curriculum.stage("large")
    with Reader(run.parent) as old, Reader(root / "step-00000000") as new:
        plan = plan_of(run.curriculum, stage, old.manifest, run.corpus.tokenizer)
        on_load, offline = grown(old, plan, stage), State.from_reader(new)
        for name, tensor in plan.new.tensors().items():
            half = tensor.shape[0] // 2  # a rank's box, not the whole tensor
            box = Box((half, *(0 for _ in tensor.shape[1:])), tensor.shape)
            for kind in KINDS:
                expected = plan.evaluate(name, box, old.read, kind)
                assert torch.equal(new.read(kind, name, box), expected), (kind, name)
        assert offline.arch == on_load.arch
        assert offline.generations == on_load.generations == plan.generations(Generations.first(plan.old))
        assert (offline.births, offline.progress, offline.cursor, offline.parent) == (
            on_load.births,
            on_load.progress,
            on_load.cursor,
            on_load.parent,
        )
        assert new.manifest.config == stage.to_dict()
        assert [b.adam_step for b in offline.births] == [20, 0]

    with safe_open(root / "step-00000000" / "weight-00000.safetensors", "pt") as file:
        assert set(file.keys()) == set(plan.new.tensors())
        assert tuple(file.get_tensor("lm_head.weight").shape) == plan.new.tensor("lm_head.weight").shape

    hash_before = Manifest.load(root / "step-00000000").hash
    assert main([str(run.folder), "--config", run.config, "--stage", "large"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert Manifest.load(root / "step-00000000").hash == hash_before


def test_stopped_and_run_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on after the files that were finished, and gives what one go gives."""
    evaluate = Plan.evaluate

    def stops(plan: Plan, name: str, box: Box, read: Any, kind: str = "weight", **more: Any) -> torch.Tensor:
        if kind == "exp_avg_sq" and name == "model.norm.weight":
            raise KeyboardInterrupt
        return evaluate(plan, name, box, read, kind, **more)

    command = ["--config", run.config, "--stage", "large", "--no-certificate"]
    target, whole = tmp_path / "stopped", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "evaluate", stops)
        with pytest.raises(KeyboardInterrupt):
            main([str(run.parent), str(target), *command])
    assert not target.exists()
    finished = (tmp_path / ".stopped.partial" / "exp_avg-00000.safetensors").stat().st_ino
    assert main([str(run.parent), str(target), *command]) == 0
    assert (target / "exp_avg-00000.safetensors").stat().st_ino == finished
    assert main([str(run.parent), str(whole), *command]) == 0
    assert Manifest.load(target).files == Manifest.load(whole).files


def test_without_certificate(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "x"
    assert main([str(run.parent), str(target), "--config", run.config, "--stage", "large", "--no-certificate"]) == 0
    assert Manifest.load(target).events[-1]["certificate"] is None


def test_errors(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what is wrong; nothing is written."""

    def error(*arguments: str) -> str:
        assert main([*arguments, "--config", run.config, "--no-certificate"]) == 2
        return capsys.readouterr().err

    target = str(tmp_path / "out")
    assert "no stage is named 'lrge'" in error(str(run.parent), target, "--stage", "lrge")
    assert "no such folder" in error(str(tmp_path / "nothing"), target, "--stage", "large")
    assert "is step 0 of its stage" in error(str(run.parent), str(tmp_path / "step-00000007"), "--stage", "large")
    (tmp_path / "out").mkdir()
    assert "there already" in error(str(run.parent), target, "--stage", "large")
    assert not list((tmp_path / "out").iterdir())
    assert "has begun already" in error(str(run.parent), "--stage", "small")
    document = yaml.safe_load(Path(run.config).read_text())
    document["stages"][1]["grow"] = {"clip": "scale"}
    (tmp_path / "scaled.yaml").write_text(yaml.safe_dump(document))
    words = [str(run.parent), str(tmp_path / "new"), "--stage", "large", "--config", str(tmp_path / "scaled.yaml")]
    assert main(words) == 2
    assert "grow.clip: scale, and only a start measures gradients" in capsys.readouterr().err


def test_fewer(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers and rows are dropped where the stage says so by name, and by no accident."""
    document = yaml.safe_load(Path(run.config).read_text())
    small, large, _ = document["stages"]
    cut = run.corpus.tokenizer.age.cut
    fewer = next(v for v in range(small["model"]["vocab"] - 1, 0, -1) if cut[v])
    model = {**small["model"], "layers": 1, "vocab": fewer}
    document["stages"] = [small, {**large, "model": model, "grow": {"layers": "drop"}}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    command = [str(run.parent), str(tmp_path / "out"), "--config", str(tmp_path / "run.yaml"), "--stage", "large"]
    assert main(command) == 2
    assert "or make it smaller on purpose: grow.vocab: drop" in capsys.readouterr().err
    document["stages"][1]["grow"]["vocab"] = "drop"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    assert main([*command, "--json"]) == 0
    certificate = json.loads(capsys.readouterr().out)["certificate"]
    assert not certificate["claims"]  # layers are gone
    assert certificate["operators"] == ["layers: drop", "vocab: drop"]
    assert verify([str(tmp_path / "out"), "--parent", str(run.parent)]) == 0


def test_a_stage_that_is_taught_knows_its_teacher(run: Run, tmp_path: Path) -> None:
    """So that it may start from what was grown: another teacher would be refused."""
    small, large, *_ = run.curriculum.stages
    changes = {"vocab": small.model.vocab}, {"teacher": "small", "kind": "logits", "share": 0.5}
    document = yaml.safe_load(Path(run.config).read_text())
    stages = {stage["name"]: stage for stage in document["stages"]}
    stages["large"] |= {"model": {**stages["large"].get("model", {}), **changes[0]}, "distill": changes[1]}
    document["stages"] = [stages["small"], stages["large"]]
    path = Path(run.config).with_name("taught.yaml")
    path.write_text(yaml.safe_dump(document))
    assert main([str(run.folder), str(tmp_path / "grown"), "--config", str(path), "--stage", large.name]) == 0
    assert Manifest.load(tmp_path / "grown").config["distill"]["teacher_hash"] == Manifest.load(run.parent).hash

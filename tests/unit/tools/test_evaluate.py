"""Tasks of lm-eval out of local files, on checkpoints and on their exports."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pretrain import config
from pretrain.checkpoint import Manifest
from pretrain.config.span_keys import Span
from pretrain.judge import records
from pretrain.stage import trained
from tests.unit.pretrain.runtime.test_files import Holder
from tests.unit.tools.runs import Run, save
from tools import evaluate
from tools.evaluate import main
from tools.export_hf import main as export_hf
from tools.generate import main as generate

QUESTIONS = [
    {"question": "def parse(self,", "choices": [" args):", " import"], "answer": 0},
    {"question": "return", "choices": [" self", " 日本", " None"], "answer": 2},
    {"question": "for name in", "choices": [" names:", " naïve"], "answer": 0},
]

pytestmark = pytest.mark.parametrize("run", ["gqa"], indirect=True)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task of multiple choice and one of loss; their data are files beside them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in QUESTIONS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}},
        "test_split": "test",
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    choice = {
        "task": "completions",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", **metric}, {"metric": "acc_norm", **metric}],
    }
    loss = {
        "task": "loss",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}{{choices[answer]}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choice, loss):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return folder


def judged(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert main([*arguments, "--json", "--device", "cpu"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_run_is_its_export(run: Run, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number for number; and what came of a checkpoint of a stage is kept for what reads it, other tasks beside it."""
    named = ["--tasks", f"{tasks}/completions.yaml,{tasks}/loss.yaml"]
    (of_run,) = judged(capsys, str(run.folder), *named)["models"]
    assert export_hf([str(run.folder), str(tmp_path / "export")]) == 0
    capsys.readouterr()
    (of_export,) = judged(capsys, str(tmp_path / "export"), *named)["models"]
    assert of_run["results"] == of_export["results"]
    assert {(task, *result["metrics"]) for task, result in of_run["results"].items()} == {
        ("completions", "acc", "acc_norm"),
        ("loss", "bits_per_byte"),
    }
    assert of_run["results"]["completions"]["samples"] == 3

    judged(capsys, str(run.folder), "--tasks", f"{tasks}/loss.yaml")
    record = records.find(run.folder / "small", Manifest.load(run.parent))
    assert record is not None
    assert record.results == of_run["results"]
    assert (record.step, record.tokens, record.failed) == (20, 2560, {})
    value = record.figures()["eval/loss/bits_per_byte"]
    assert value == of_run["results"]["loss"]["metrics"]["bits_per_byte"]
    groups = [trained.Group("layers 0-1", ("x",), 0, "small", 0.0, 600, 0.0)]
    trained.keep(run.folder / "small", groups)
    assert export_hf([str(run.folder), str(tmp_path / "again")]) == 0
    card = (tmp_path / "again/README.md").read_text()
    assert f"| loss | bits_per_byte | {value:.4f} | 3 | 0 |" in card
    assert "| layers 0-1 | 0 (small) | 600 | 100.0% | frozen | nothing |" in card


def test_a_task_that_fails_is_said(run: Run, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are done all the same. What cannot be known is refused before anything slow."""
    (tasks / "broken.yaml").write_text((tasks / "loss.yaml").read_text().replace("questions.jsonl", "nowhere.jsonl"))
    named = f"{tasks}/broken.yaml,{tasks}/loss.yaml"
    (one,) = judged(capsys, str(run.parent), "--tasks", named, code=1)["models"]
    assert list(one["results"]) == ["loss"]
    assert "nowhere.jsonl" in one["failed"][f"{tasks}/broken.yaml"]
    assert main([str(run.parent), "--tasks", f"{tasks}/absent.yaml"]) == 2
    assert "absent.yaml is not there" in capsys.readouterr().err
    assert main([str(run.parent), "--tasks", ","]) == 2
    assert "name at least one" in capsys.readouterr().err


def test_what_is_due(run: Run, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoints that `eval` of the stage asks for, each once; a task that fails is kept with its reason."""
    stage, folder = run.curriculum.stage("small"), tmp_path / "run/small"
    judge = config.Eval((f"{tasks}/loss.yaml", "no_such_task"), interval=20, limit=2)
    stage = replace(stage, eval=judge)
    save(stage, folder / "checkpoints/step-00000020")
    (folder / "config.yaml").write_text(config.to_yaml(stage))
    (folder / "metrics.jsonl").touch()
    assert records.is_due(stage, 40, last=False)
    assert records.is_due(stage, 0, last=False)
    assert not records.is_due(stage, 30, last=False)
    (one,) = judged(capsys, str(folder), "--due", code=1)["models"]
    assert one["results"]["loss"]["samples"] == 2
    assert "no_such_task" in one["failed"]["no_such_task"]
    assert judged(capsys, str(folder), "--due")["models"] == []
    (record,) = records.read(folder)
    assert (record.step, record.limit) == (20, 2)
    assert "no_such_task" in record.failed["no_such_task"]
    records.forget(folder, after=19)
    assert records.waiting(folder, stage)


def test_a_checkpoint_that_is_gone_at_the_end(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that retention has removed meanwhile the results are kept; of one behind which the stage went, not."""
    stage = replace(run.curriculum.stage("small"), eval=config.Eval(("some_task",), interval=20))
    result = {"metrics": {"acc": 0.5}, "errors": {}, "samples": 2, "fewshot": 0}
    monkeypatch.setattr(evaluate, "_results", lambda *_: ({"some_task": result}, {}))
    monkeypatch.setattr(evaluate, "export", lambda checkpoint, *_, **__: shutil.rmtree(checkpoint))
    for later, kept in ((30, [20]), (10, [])):
        folder = tmp_path / str(later) / "small"
        save(stage, folder / "checkpoints/step-00000020")
        (folder / f"checkpoints/step-{later:08d}").mkdir()
        (folder / "config.yaml").write_text(config.to_yaml(stage))
        (folder / "metrics.jsonl").touch()
        judged(capsys, str(folder), "--due")
        assert [record.step for record in records.read(folder)] == kept


def test_what_a_stage_has_grown_from_is_judged_once(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process of the stage that it is of is at it already."""
    stage, folder = replace(run.curriculum.stage("large"), eval=config.Eval(("some_task",))), tmp_path / "run/large"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(stage))
    (folder / "metrics.jsonl").touch()
    shutil.copytree(run.parent, parent := tmp_path / "run/small/checkpoints/step-00000020")
    manifest = Manifest.load(parent)
    newest = SimpleNamespace(manifest=SimpleNamespace(parent={"path": str(parent), "hash": manifest.hash}))
    monkeypatch.setattr(evaluate, "find", lambda _: newest)
    result = {"metrics": {"acc": 0.5}, "errors": {}, "samples": 2, "fewshot": 0}
    about = {"limit": None, "harness": "none", "took": 1.0}

    def other(_: float) -> None:
        records.keep(tmp_path / "run/small", records.Record.of(manifest, results={"some_task": result}, **about))
        holder.stop()

    (tmp_path / "run/small/evaluations").mkdir()
    holder = Holder(tmp_path / "run/small/evaluations/lock", os.uname().nodename)
    monkeypatch.setattr(evaluate.time, "sleep", other)
    monkeypatch.setattr(evaluate, "_results", lambda *_: pytest.fail("it is judged twice"))
    assert judged(capsys, str(folder), "--due")["models"] == []
    assert records.find(tmp_path / "run/small", manifest)


@pytest.mark.parametrize(
    "unusual", [{"layers": 0, "order": "sffsf"}, {"span": Span(max=30)}], ids=["an order", "spans"]
)
def test_a_model_that_goes_with_its_code(
    unusual: dict[str, Any],
    run: Run,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is run, since it is ours; and an export writes what its checkpoint does."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    stage = run.curriculum.stage("small")
    checkpoint, folder = str(tmp_path / "step-00000020"), str(tmp_path / "export")
    save(replace(stage, model=replace(stage.model, **unusual)), tmp_path / "step-00000020")
    (one,) = judged(capsys, checkpoint, "--tasks", f"{tasks}/loss.yaml")["models"]
    assert one["results"]["loss"]["metrics"]["bits_per_byte"] > 0
    assert not (tmp_path / "evaluations").exists()
    assert export_hf([checkpoint, folder]) == 0
    capsys.readouterr()
    (same,) = judged(capsys, folder, "--tasks", f"{tasks}/loss.yaml")["models"]
    assert same["results"] == one["results"]
    written = []
    for model in (checkpoint, folder):
        assert generate([model, "--prompt", "def parse(self", "--tokens", "12", "--temperature", "0"]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]


def test_what_fills_gaps_is_refused(run: Run, tmp_path: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "megatron-bert"}')
    assert main([str(tmp_path), "--tasks", f"{tasks}/loss.yaml"]) == 2
    assert "need a model that writes text" in capsys.readouterr().err

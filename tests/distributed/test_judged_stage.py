"""A stage whose checkpoints are judged beside its training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint import find, is_done
from pretrain.judge import beside, records
from pretrain.stage import metrics
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

TOOL = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert sys.argv[2:] == ["--due", "--device", "cpu"]
if pathlib.Path(__file__).with_name("broken").exists():
    sys.exit(1)
steps = [int(path.name[5:]) for path in sorted((folder / "checkpoints").glob("step-*"))]
due = [step for step in steps if step % 4 == 0 or (step == steps[-1] and (folder / "DONE").exists())]
for step in due:
    path = folder / f"evaluations/step-{step:08d}.json"
    if not path.exists():
        with open(pathlib.Path(__file__).with_name("said"), "a") as out:
            print(folder.name, step, file=out)
        manifest = json.loads((folder / f"checkpoints/step-{step:08d}/manifest.json").read_text())
        place = {key: manifest["progress"][key] for key in ("tokens", "flops", "seconds")}
        result = {"metrics": {"acc": step / 8}, "errors": {"acc": 0.1}, "samples": 3, "fewshot": 0}
        record = {"checkpoint": "of a test", "step": step, **place, "results": {"mine": result}, "limit": None}
        record |= {"harness": "none", "took": 1.0, "failed": {"other": "no network"}}
        path.write_text(json.dumps(record))
"""


def judged_stage(tools: str, path: str, name: str, stop_after: int | None = None) -> str:
    """`stage`, whose evaluations are by a tool of the test, and over when training goes on."""

    def waited(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(*arguments, **options)
        process.wait()
        return process

    patched = pytest.MonkeyPatch()
    patched.setattr(beside, "ROOT", Path(tools))
    patched.setattr(beside, "subprocess", type("", (), {**vars(subprocess), "Popen": waited}))
    try:
        return stage(path, name, [], stop_after)
    finally:
        patched.undo()


def test_checkpoints_are_judged_once(corpus: Path, tmp_path: Path) -> None:
    """At the interval, at the end and right after a growth event; a tool that fails stops nothing, and what has not
    been judged is not removed; a resume judges nothing again."""
    tools = tmp_path / "code"
    (tools / "tools").mkdir(parents=True)
    (tools / "tools/evaluate.py").write_text(TOOL)
    task = tmp_path / "mine.yaml"
    task.write_text("task: mine\n")
    path = curriculum(
        corpus, tmp_path, checkpoint={"interval": 2, "keep": 1}, eval={"tasks": [str(task)], "interval": 4}
    )
    folder = tmp_path / "run"

    (tools / "tools/broken").touch()
    assert run(2, judged_stage, str(tools), str(path), "small") == ["", ""]
    assert is_done(folder / "small")
    assert sorted(p.name for p in (folder / "small/checkpoints").glob("step-*")) == ["step-00000004", "step-00000008"]
    assert not records.read(folder / "small")
    (tools / "tools/broken").unlink()

    assert run(2, judged_stage, str(tools), str(path), "large", 6) == ["", ""]
    assert run(2, judged_stage, str(tools), str(path), "large") == ["", ""]
    said = (tools / "tools/said").read_text().splitlines()
    assert said == ["large 0", "large 4", "large 8"]
    found = find(folder / "large/checkpoints").manifest
    assert found is not None
    assert len(list((folder / "large/checkpoints").glob("step-*"))) == 1
    kept = records.read(folder / "large")
    assert [record.step for record in kept] == [0, 4, 8]
    assert kept[-1].flops == found.progress["flops"]
    logged = [r for r in metrics.read(folder / "large/metrics.jsonl") if "eval/mine/acc" in r]
    assert [(r["step"], r["eval/mine/acc"]) for r in logged] == [(0, 0.0), (4, 0.5)]
    assert [r["tokens"] for r in logged] == [record.tokens for record in kept[:2]]
    config = (folder / "large/config.yaml").read_text()
    assert str(task) in config
    event = json.loads((folder / "large/events/step-00000000.json").read_text())
    assert event["seconds"] > 0

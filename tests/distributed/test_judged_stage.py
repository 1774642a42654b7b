"""A stage whose checkpoints are judged beside its training."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from growth import Box, Plan
from pretrain.checkpoint import Reader, find, is_done
from pretrain.judge import beside, records
from pretrain.stage import metrics, trained
from pretrain.state import State
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

TOOL = """
import json, os, pathlib, sys
assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)  # or libraries would join the ranks
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
    assert str(task) in (folder / "large/config.yaml").read_text()
    check_moved(folder / "large")


def check_moved(folder: Path) -> None:
    """What trained.json says of a stage: all of its parameters, and how far they are from what they grew to be."""
    known = trained.read(folder)
    end = find(folder / "checkpoints").path
    assert end is not None
    with Reader(end) as reader, Reader(Path(reader.manifest.parent["path"])) as parent:  # type: ignore[index]
        state = State.from_reader(reader)
        assert sum(group.parameters for group in known) == state.arch.parameters()
        assert {group.generation for group in known} == {0, 1}
        plan = Plan.from_json(state.events[-1]["plan"])
        for group in known:
            change = start = count = 0.0
            for name, tensor in state.arch.tensors().items():
                place = tensor.spec.name if tensor.layer is None else "layers"
                if tensor.spec.name not in group.tensors or not group.where.startswith(
                    place.rstrip("s") if place == "layers" else place
                ):
                    continue
                if tensor.layer is not None and not inside(tensor.layer, group.where):
                    continue
                of = state.generations.of(tensor, Box.whole(tensor.shape)) == group.generation
                before = plan.evaluate(name, Box.whole(tensor.shape), parent.read)[of].double()
                after = reader.read("weight", name, Box.whole(tensor.shape))[of].double()
                change, start = change + float((after - before).square().sum()), start + float(before.square().sum())
                count += int(of.sum())
            assert group.parameters == count, group
            assert group.rate == 1
            assert group.moved == pytest.approx((change / start) ** 0.5 if start else None), group
            assert group.moved is None or group.moved > 0


def inside(layer: int, where: str) -> bool:
    """Whether a layer is one of "layers 0-2, 5" or "layer 5"."""
    runs = [run.split("-") for run in where.partition(":")[0].split(" ", 1)[1].split(", ")]
    return any(int(run[0]) <= layer <= int(run[-1]) for run in runs)

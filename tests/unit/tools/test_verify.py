"""Verification: what is sound passes, and every planted fault is found, by more than one check where that can be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import growth
from growth import Architecture, Box, Generations, Plan
from pretrain.checkpoint import KINDS, Reader, write_checkpoint
from pretrain.event.plan import patched
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from pretrain.verify import audit
from tests.unit.tools.runs import Run, rewrite
from tools.grow import main as grow
from tools.verify import main

Tensors = dict[tuple[str, str], torch.Tensor]


@pytest.fixture(scope="module")
def grown(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint that "small" grows into, at a stage."""
    made: dict[str, Path] = {}

    def make(stage: str) -> Path:
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(stage) / "grown"
            arguments = [str(run.parent), str(made[stage]), "--config", run.config, "--stage", stage]
            assert grow([*arguments, "--no-certificate"]) == 0
        return made[stage]

    return make


def verify(path: Path, parent: Path | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """(exit code, check name -> its result)."""
    capsys.readouterr()
    code = main([str(path), *(["--parent", str(parent)] if parent else []), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] == (code == 0)
    return code, {check["name"]: check for check in told["checks"]}


def content(path: Path) -> Tensors:
    with Reader(path) as reader:
        tensors = Architecture.from_json(reader.manifest.architecture).tensors()
        return {(k, n): reader.read(k, n, Box.whole(t.shape)) for k in KINDS for n, t in tensors.items()}


@pytest.mark.parametrize("stage", ["large", "finer"])
def test_a_sound_event(run: Run, grown: Callable[[str], Path], stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = verify(grown(stage), run.parent, capsys)
    assert code == 0
    assert {name for name, check in checks.items() if check["passed"]} == {
        *("integrity", "parent", "plan", "content", "function", "moments", "dead")
    }
    assert "held-out text" in checks["function"]["told"]


def test_without_a_corpus(run: Run, grown: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn token ids do, and it says so."""
    child = grown("large")  # which needs the tokenizer
    moved = run.corpus.path.rename(run.corpus.path.with_name("away"))
    try:
        code, checks = verify(child, run.parent, capsys)
    finally:
        moved.rename(run.corpus.path)
    assert code == 0
    assert "drawn at random" in checks["function"]["told"]


def test_too_large_for_gradients(
    run: Run, grown: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The function is still measured, a layer at a time; what needs all gradients is skipped and said to be."""
    monkeypatch.setattr(audit, "COPIES", 1 << 50)
    code, checks = verify(grown("large"), run.parent, capsys)
    assert code == 0
    assert checks["function"]["passed"]
    assert [name for name, check in checks.items() if check["passed"] is None] == ["moments", "dead"]


def gain_without_eps(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    return {}, {"norm_eps": 1e-3}


def head_dim_padded_at_the_tail(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """The rows of the old slots first, instead of spread over the new rotary pairs."""
    dim = arch.sizes["head_dim"]
    spread = [*range(0, dim // 2, 2), *range(dim // 2, dim, 2)]
    rows = spread + [i for i in range(dim) if i not in spread]
    change = {}
    for (kind, name), value in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            change[kind, name] = value.unflatten(0, (-1, dim))[:, rows].flatten(0, 1)
    return change, {}


def interleave_off_by_one_group(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    """The keys and values of each group are the next one's."""
    names = ("k_proj.weight", "v_proj.weight")
    shift = arch.sizes["head_dim"]
    return {key: value.roll(shift, 0) for key, value in tensors.items() if key[1].endswith(names)}, {}


def swapped_gate_and_up(arch: Architecture, tensors: Tensors) -> tuple[Tensors, dict[str, float]]:
    change = {}
    for (kind, name), value in tensors.items():
        for a, b in (("gate_proj", "up_proj"), ("up_proj", "gate_proj")):
            if a in name:
                change[kind, name.replace(a, b)] = value
    return change, {}


@pytest.mark.parametrize(
    ("fault", "stage", "check"),
    [
        (gain_without_eps, "large", "plan"),
        (head_dim_padded_at_the_tail, "finer", "content"),
        (interleave_off_by_one_group, "large", "content"),
        (swapped_gate_and_up, "large", "content"),
    ],
)
def test_planted_in_the_function(
    fault: Callable[[Architecture, Tensors], tuple[Tensors, dict[str, float]]],
    stage: str,
    check: str,
    run: Run,
    grown: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found against the plan, and by the function alone."""
    with Reader(grown(stage)) as reader:
        arch = Architecture.from_json(reader.manifest.architecture)
    change, scalars = fault(arch, content(grown(stage)))
    rewrite(grown(stage), tmp_path / "planted", change, **scalars)
    code, checks = verify(tmp_path / "planted", run.parent, capsys)
    assert code == 1
    assert {name for name, c in checks.items() if c["passed"] is False} >= {check, "function"}
    assert checks["integrity"]["passed"]


def test_moments_scaled_the_wrong_way(
    run: Run, grown: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gains take s = sqrt(d / D), so their moments take 1/s and 1/s^2: s and s^2 are found, tensor by tensor."""
    s = (24 / 40) ** 0.5
    change = {
        (kind, name): value * s ** {"exp_avg": 2, "exp_avg_sq": 4}[kind]
        for (kind, name), value in content(grown("large")).items()
        if kind != "weight" and name.endswith("norm.weight") and value.any()  # those of a new layer are zero
    }
    rewrite(grown("large"), tmp_path / "planted", change)
    code, checks = verify(tmp_path / "planted", run.parent, capsys)
    assert code == 1
    assert checks["function"]["passed"]
    findings = checks["content"]["findings"]
    assert len(findings) == len(change)
    assert "exp_avg of model.layers.0.input_layernorm.weight" in findings[0]
    assert "it is 0.6 times what it should be" in findings[0]


def test_a_plan_with_the_wrong_rule_for_moments(
    run: Run, grown: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that is just what its plan says, where the plan itself scales moments by s: gradients tell."""

    def wrong(data: Any) -> Any:
        if isinstance(data, dict):
            return {k: data["weight"] if k == "gradient" else wrong(v) for k, v in data.items()}
        return [wrong(v) for v in data] if isinstance(data, list) else data

    with Reader(grown("large")) as reader, Reader(run.parent) as parent:
        event = reader.manifest.events[-1]
        planted = {**event, "plan": wrong(event["plan"])}
        plan = Plan.from_json(planted["plan"])
        change = {
            (kind, name): plan.evaluate(name, Box.whole(t.shape), parent.read, kind)
            for name, t in plan.new.tensors().items()
            for kind in KINDS
        }
    rewrite(grown("large"), tmp_path / "planted", change, events=(planted,))
    code, checks = verify(tmp_path / "planted", run.parent, capsys)
    assert code == 1
    assert [name for name, c in checks.items() if c["passed"] is False] == ["moments"]


def test_another_parent(
    run: Run, grown: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(run.parent, tmp_path / "other", {}, norm_eps=0.5)
    code, checks = verify(grown("large"), tmp_path / "other", capsys)
    assert code == 1
    assert not checks["parent"]["passed"]
    assert "norm_eps" in checks["plan"]["findings"][0]


def test_a_stage_with_patches(
    run: Run, grown: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The event between a stage and its parent is the first of the stage, whatever it has grown since."""

    def patch(source: Path, target: Path, layers: int) -> None:
        with Reader(source) as reader:
            m, stage = reader.manifest, run.curriculum.stage("large")
            arch = Architecture.from_json(m.architecture)
            policy = {"layers": {"operator": "insert", "at": [{"index": 1, "init": "copy"}]}}
            plan = growth.between(arch, arch.replace({"layers": layers}), policy, seed=1, init_std=0.02)
            state = patched(reader, plan, stage)
            event = {"stage": "large", "plan": plan.to_json(), "certificate": None, "seconds": 1.0}
            progress = replace(state.progress, step=state.progress.step + 5)
            state = replace(state, events=(*state.events, event), progress=progress)
            fields = state.fields("large", m.config, [b.adam_step for b in state.births])
            write_checkpoint(target, progress.step, list(KINDS), partial(_through, plan, reader), fields, {})

    layers = run.curriculum.stage("large").model.layers
    patch(grown("large"), tmp_path / "one", layers + 1)
    patch(tmp_path / "one", tmp_path / "two", layers + 2)
    for name, count in (("one", 1), ("two", 2)):
        code, checks = verify(tmp_path / name, run.parent, capsys)
        assert code == 0
        assert checks["plan"]["passed"]
        assert checks["function"]["passed"]
        assert f"{count} inside the stage" in checks["patches"]["told"]
    # A checkpoint that says nothing of its first patch is not what the events lead to.
    with Reader(tmp_path / "two") as reader:
        event, _, second = reader.manifest.events
    rewrite(tmp_path / "two", tmp_path / "gap", {}, events=(event, second))
    code, checks = verify(tmp_path / "gap", run.parent, capsys)
    assert code == 1
    assert f"leads to layers {layers}, and what patch 1 begins with has {layers + 1}" in checks["plan"]["findings"][0]


def _through(plan: Plan, reader: Reader, kind: str, name: str, box: Box) -> torch.Tensor:
    return plan.evaluate(name, box, reader.read, kind)


def test_a_parent_of_another_family(
    grown: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab": 8, "positions": 4, "hidden": 4, "layers": 1, "heads": 2, "head_dim": 2, "ffn": 8}
    arch = Architecture("gpt2", sizes)
    state = State(arch, Generations.first(arch), (Birth(0, "small", 0),), Progress(), None)
    fields = state.fields("small", {}, [0])
    write_checkpoint(tmp_path / "gpt2", 0, ["weight"], lambda kind, name, box: torch.zeros(box.shape), fields, {})
    code, checks = verify(grown("large"), tmp_path / "gpt2", capsys)
    assert code == 1
    assert "leads from llama2" in checks["plan"]["findings"][0]
    assert "is gpt2" in checks["plan"]["findings"][0]


def test_integrity(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit is named with file, block and tensor, a missing file too; no checkpoint is the user's error."""
    assert verify(run.parent, None, capsys)[0] == 0
    copy = tmp_path / "copy"
    shutil.copytree(run.parent, copy)
    file = copy / "exp_avg-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    code, checks = verify(copy, None, capsys)
    assert code == 1
    assert "exp_avg-00000.safetensors, block 0" in checks["integrity"]["findings"][0]
    file.unlink()
    code, checks = verify(copy, None, capsys)
    assert code == 1
    assert "exp_avg-00000.safetensors" in checks["integrity"]["findings"][0]
    assert main([str(tmp_path)]) == 2
    assert main([str(run.parent), "--parent", str(run.parent)]) == 2
    assert "was not grown from anything" in capsys.readouterr().err

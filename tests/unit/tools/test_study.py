"""Studies whose runs are made up: which runs come next, what is said of them, and that nothing is done twice."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.cli.study_runs import DIVERGES, Runs
from pretrain.estimate import cost
from pretrain.estimate.speed import GPUS
from pretrain.report import comparison
from pretrain.report.study import Frontier, Mean, spikes
from pretrain.study import curricula, keys, search
from pretrain.study.curricula import Run
from tests.unit.tools.test_compare import write as write_stage
from tools import study as tool

TAKE = Runs.take

STUDY: dict[str, Any] = {
    "name": "made-up",
    "tokens": 12_800,
    "rates": [1e-3, 2e-3],
    "seeds": [1, 2],
    "best": 1,
    "speed": 1e9,
    "variants": {"best": 1, "grow": {"carried": {"moments": "copy"}}},
    "base": {
        "data": {"corpus": "data/none"},
        "model": {"vocab": 1024, "hidden": 64, "layers": 4, "heads": 2, "ffn": 128},
        "parallel": {"dp": 1},
        "train": {"seq_len": 32, "global_batch": 4},
    },
    "fixed": [{"name": "shallow", "model": {"layers": 2}, "budgets": [0.5]}],
    "recipes": [
        {"name": "scratch", "stages": [{}]},
        {
            "name": "stack",
            "stages": [{"model": {"layers": 2}, "until": [0.25, 0.5]}, {"grow": {"recipe": "g_stack"}}],
        },
        {"name": "identity", "stages": [{"model": {"layers": 1}, "until": 0.5}, {}]},
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "made-up.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "runs"), **changes}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    path = write(tmp_path)
    return Runs(keys.load(path), path)


def named(phase: search.Phase) -> list[str]:
    return [run.name for run in phase.runs]


def test_the_grid(runs: Runs) -> None:
    """Times of growth are curricula of their own; a size from scratch gets the tokens that its budget buys."""
    entries = {entry.name: entry for entry in curricula.entries(runs.study, runs.path)}
    assert list(entries) == ["shallow-0.5", "scratch", "stack-0.25", "stack-0.5", "identity"]
    assert [stage["train"]["tokens"] for stage in entries["stack-0.25"].stages] == [3200, 9600]
    planned = {
        name: cost.of_curriculum(runs.curriculum(Run(entries[name], 1e-3, 1)), gpu=GPUS["a100-80gb"])[0].flops
        for name in ("scratch", "shallow-0.5")
    }
    assert planned["shallow-0.5"] == pytest.approx(planned["scratch"] / 2, rel=0.02)  # to a whole step of 128 tokens
    curriculum = runs.curriculum(Run(entries["stack-0.5"], 2e-3, 7))
    assert [(s.model.layers, s.train.lr, s.seed) for s in curriculum.stages] == [(2, 2e-3, 7), (4, 2e-3, 7)]
    assert (curriculum.stages[1].grow.layers, curriculum.stages[1].grow.moments) == ("stack", "reset")


def test_all_have_the_same_search_and_the_best_go_on(runs: Runs) -> None:
    entries = curricula.entries(runs.study, runs.path)
    (first,) = search.phases(runs.study, entries, {})
    assert len(first.runs) == len(entries) * 2
    losses = {run.name: 3.0 + run.rate for run in first.runs}
    losses["stack-0.5-lr0.002-seed1"] = 2.0
    losses["scratch-lr0.001-seed1"] = float("inf")  # it diverged
    _, tried = search.phases(runs.study, entries, losses)
    assert named(tried) == ["stack-0.5-carried-lr0.001-seed1", "stack-0.5-carried-lr0.002-seed1"]
    losses |= {"stack-0.5-carried-lr0.001-seed1": 1.0, "stack-0.5-carried-lr0.002-seed1": 5.0}
    *_, seeds = search.phases(runs.study, entries, losses)
    assert named(seeds) == ["scratch-lr0.002-seed2", "stack-0.5-carried-lr0.001-seed2"]


def test_a_search_with_a_share_of_the_tokens(tmp_path: Path) -> None:
    """Rates are tried with short runs, stage by stage; what is compared, and ranks the recipes, is the whole run."""
    path = write(tmp_path, search=0.25)
    study = keys.load(path)
    runs, entries = Runs(study, path), curricula.entries(study, path)
    (first,) = search.phases(study, entries, {})
    assert len(first.runs) == len(entries) * 2
    short = next(run for run in first.runs if run.name == "stack-0.25-lr0.001-seed1-of0.25")
    assert [stage.train.tokens for stage in runs.curriculum(short).stages] == [768, 2432]  # whole steps of 128
    losses = {run.name: 3.0 + run.rate for run in first.runs}
    losses["identity-lr0.002-seed1-of0.25"] = 2.0
    _, whole = search.phases(study, entries, losses)
    names = ["shallow-0.5-lr0.001-seed1", "scratch-lr0.001-seed1", "stack-0.25-lr0.001-seed1"]
    assert named(whole) == [*names, "stack-0.5-lr0.001-seed1", "identity-lr0.002-seed1"]
    losses |= {run.name: 3.0 for run in whole.runs} | {"stack-0.5-lr0.001-seed1": 1.0}
    *_, tried = search.phases(study, entries, losses)
    assert named(tried) == [f"stack-0.5-carried-lr{rate}-seed1-of0.25" for rate in ("0.001", "0.002")]
    flops = {"search of the rate": 10, "all tokens at the best rate": 5, "variants of the best": 2, "other seeds": 2}
    planned = search.planned(study, entries, lambda entry: 1.0)
    assert {phase.purpose: len(phase.runs) for phase in planned} == {**flops, "all tokens at their best rate": 1}


def test_two_at_once_share_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What another process trains is left to it; what it ended meanwhile is not done again."""
    path, trained = write(tmp_path, seeds=[1], variants={}), Trained(tmp_path)
    monkeypatch.setattr(Runs, "_stage", lambda *args: trained(*args))
    monkeypatch.setattr(Runs, "take", lambda runs, run: None if "stack-0.5" in run.name else TAKE(runs, run))
    before: list[int] = []

    def sleep(seconds: float) -> None:
        """The other process is killed while this one waits."""
        before.append(len({name.split("/")[0] for name in trained.asked}))
        if len(before) == 2:
            monkeypatch.setattr(Runs, "take", TAKE)

    monkeypatch.setattr(tool.time, "sleep", sleep)
    assert tool.main([str(path)]) == 0
    assert capsys.readouterr().err.count("others train the last 2 of this phase") == 1
    assert before == [8, 8]

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.time, "sleep", interrupted)
    monkeypatch.setattr(Runs, "take", lambda runs, run: None)
    write(tmp_path, variants={}, seeds=[1, 2])
    assert tool.main([str(path)]) == 0
    assert {name.split("/")[0] for name in trained.asked[-4:]} == {"stack-0.5-lr0.001-seed1", "stack-0.5-lr0.002-seed1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_stops_its_stage(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks the stage to save, and waits for it; nothing trains on behind its back."""
    stage = tmp_path / "slurm" / "stage.sh"
    stage.parent.mkdir()
    stage.write_text("sleep infinity &\ntrap 'kill $!; echo saved; exit 0' TERM\necho ready\nwait\n")
    monkeypatch.setattr("pretrain.cli.study_runs.ROOT", tmp_path)
    logs, wait = tmp_path / "runs" / "made-up", subprocess.Popen.wait
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # What a shell starts in the background ignores it.

    def stopped(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not any("ready" in log.read_text() for log in logs.glob("*.log")):
            os.sched_yield()
        signal.raise_signal(number)
        return process.wait(timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    try:
        assert tool.main([str(write(tmp_path))]) == 0
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "was stopped; the same command goes on" in capsys.readouterr().err
    (log,) = logs.glob("*.log")
    assert log.read_text() == "ready\nsaved\n"


def test_a_frontier_has_only_what_no_cheaper_size_beats() -> None:
    frontier = Frontier.of([(1e3, 4.0, "a"), (1e5, 2.0, "c"), (1e4, 5.0, "b")])
    assert [name for _, _, name in frontier.points] == ["a", "c"]
    assert frontier.at(1e4) == pytest.approx(3.0)
    assert (frontier.at(1e3), frontier.at(1e5), frontier.at(1e2), frontier.at(1e6)) == (4.0, 2.0, None, None)


def test_an_interval_over_seeds() -> None:
    assert Mean.of([1.0]) == Mean(1.0)
    three = Mean.of([1.0, 2.0, 3.0])
    assert three
    assert three.half == pytest.approx(4.303 / 3**0.5)


def test_a_spike_and_how_long_it_lasts(tmp_path: Path) -> None:
    write_stage(tmp_path / "patched", [8.0, 4.0, 4.5, 3.0], patch=10)  # 5 just after the event
    (line,) = comparison.lines([tmp_path / "patched"])
    (spike,) = spikes(line, "validation_loss")
    assert (spike.rise, spike.steps) == (1.0, 20)


class Trained:
    """Stands for stages that train: each ends with a loss that its run's name decides. Knows which it was asked for."""

    def __init__(self, runs_of: Path) -> None:
        self.folder, self.asked = runs_of, list[str]()

    def __call__(self, runs: Runs, file: Path, stage: str, log: Path, deadline: float) -> tuple[int, int]:
        self.asked.append(f"{file.stem}/{stage}")
        document = yaml.safe_load(file.read_text())
        folder = runs.study.folder / file.stem / stage
        end = 2.0 + 100 * document["train"]["lr"] - ("stack" in file.stem) + 0.1 * document["seed"]
        first = stage in ("whole", "stage-1")
        write_stage(folder, [8.0, 6.0, end], start=0 if first else 20)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": document["seed"]}))
        return 0, 0


def test_a_study_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trained = write(tmp_path), Trained(tmp_path)
    monkeypatch.setattr(Runs, "_stage", lambda *args: trained(*args))
    arguments = [str(path), "--out", str(tmp_path / "out"), "--json"]
    assert tool.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["missing"], found["target"]) == (0, "scratch")
    rows = {row["entry"]: row for row in found["rows"]}
    assert rows["scratch"]["gap_tokens"]["value"] == 0.0
    assert rows["stack-0.25"]["rate"] == 1e-3  # the better one
    assert rows["stack-0.25"]["seeds"] == rows["scratch"]["seeds"] == 2
    assert rows["stack-0.25"]["gap_tokens"]["value"] == pytest.approx(-1.0)
    assert rows["stack-0.25"]["gap_tokens"]["half"] == pytest.approx(0.0, abs=1e-9)
    # Between steps 10 and 20 it falls from 6 to 1.2 or, with seed 2, 1.3; the target ends 1 above that, at step 20.
    expected = (10 + 10 * 3.8 / 4.8 + 10 + 10 * 3.7 / 4.7) / 2 / 20
    assert rows["stack-0.25"]["ratio"]["flops"]["value"] == pytest.approx(expected)
    assert any("at an end of the grid" in line for line in found["not_shown"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"table.md", "loss.png", "saving.png"}
    assert "the rates 0.001, 0.002, one run each, with seed 1" in (tmp_path / "out" / "table.md").read_text()

    before = len(trained.asked)
    assert tool.main(arguments) == 0
    assert len(trained.asked) == before, "nothing is done twice"
    capsys.readouterr()

    recipes = [*STUDY["recipes"][:2], {"name": "identity", "stages": [{"model": {"layers": 2}, "until": 0.5}, {}]}]
    write(tmp_path, recipes=recipes)
    assert tool.main(arguments) == 2
    assert "identity-lr0.001-seed1 was begun with other keys (stages" in capsys.readouterr().err


def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    assert tool.main([str(path), "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(phase["purpose"], phase["runs"]) for phase in found["phases"]] == [
        ("search of the rate", 10),
        ("variants of the best", 2),
        ("other seeds", 2),
    ]
    assert not (tmp_path / "runs").exists()
    assert tool.main([str(path), "--plan", "--gpu", "a100-80gb"]) == 0
    assert "hours on 1 x a100-80gb" in capsys.readouterr().out


def test_a_stage_that_fails_and_one_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's error ends the study with the stage's own words; a rate that is too high does not."""
    said = {"text": "error: no such corpus\nthe ranks end\n"}

    def stage(runs: Runs, file: Path, stage: str, log: Path, deadline: float) -> tuple[int, int]:
        log.write_text(said["text"])
        return 2, 0

    monkeypatch.setattr(Runs, "_stage", stage)
    path = write(tmp_path, seeds=[1], variants={})
    assert tool.main([str(path)]) == 2
    assert "'whole' ended with exit code 2, see " in (error := capsys.readouterr().err)
    assert "error: no such corpus" in error
    said["text"] = f"error: 3 rollbacks (guard.rollbacks): {DIVERGES}\n"
    assert tool.main([str(path)]) == 2  # all have diverged, and nothing is left to compare with
    assert len(list((tmp_path / "runs" / "made-up").glob("*/DIVERGED"))) == 10
    assert "the target from scratch has not ended yet" in capsys.readouterr().err


def test_a_job_that_diverged_is_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs have logs of their own, in the folder of their stage."""
    path = write(tmp_path, seeds=[1], variants={})
    submitted: list[str] = []

    def sbatch(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        file = Path(command[-1])
        submitted.append(file.stem)
        folder = file.with_suffix("") / yaml.safe_load(file.read_text())["stages"][0]["name"]
        folder.mkdir()
        (folder / "job-1.log").write_text(f"error: 3 rollbacks: {DIVERGES}\n")
        return subprocess.CompletedProcess(command, 0, "whole is job 1", "")

    monkeypatch.setattr("pretrain.cli.study_runs.subprocess.run", sbatch)
    monkeypatch.setattr(tool.shutil, "which", lambda name: name)
    for _ in range(2):
        tool.main([str(path), "--slurm"])
    assert len(submitted) == len(set(submitted)) == 10
    assert len(list((tmp_path / "runs" / "made-up").glob("*/DIVERGED"))) == 10
    assert "scratch-lr0.001-seed1 has diverged" in capsys.readouterr().err


def test_nothing_has_ended_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(write(tmp_path)), "--report"]) == 0
    assert "the target from scratch has not ended yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rates": []}, "rates"),
        ({"recipe": []}, "unknown key, did you mean 'recipes'"),
        ({"recipes": STUDY["recipes"][1:]}, "none is the target from scratch"),
        ({"recipes": [STUDY["recipes"][0], {"name": "x", "stages": [{}, {}]}]}, "give the share of the tokens after"),
        ({"recipes": [STUDY["recipes"][0]] * 2}, "is there twice"),
        ({"base": {**STUDY["base"], "train": {"seq_len": 8, "global_batch": 2, "lr": 1}}}, "remove it for rates"),
        ({"fixed": [{"name": "odd", "model": {"hidden": 65}}]}, "not divisible by model.heads"),
    ],
)
def test_bad_input_is_one_line(
    changes: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(write(tmp_path, **changes)), "--plan"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["micro", "10m", "124m", "1b"])
def test_the_studies_that_are_shipped(name: str) -> None:
    """Every curriculum in them can be one."""
    path = Path(f"configs/study/{name}.yaml")
    study = keys.load(path)
    assert study.name == f"study-{name}"
    entries = curricula.entries(study, path)
    impossible = {"mslt-reset"}  # it tells old parts from new ones by their moments
    expected = {f"{e.name}-{v}" for e in entries for v in study.variants.grow if not e.scratch} - impossible
    assert {e.name for e in curricula.variants(study, [e for e in entries if not e.scratch])} == expected

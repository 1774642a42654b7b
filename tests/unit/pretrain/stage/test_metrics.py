"""Records on disk, on the console and in the optional services."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import wandb

from pretrain import config
from pretrain.stage import metrics
from pretrain.stage.metrics import Metrics
from tests.unit.small import small_curriculum

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class At:
    """Progress in which a step is 100 tokens, 1e9 FLOPs and half a second, after 1000 tokens of an earlier stage."""

    step: int

    @property
    def stage_tokens(self) -> int:
        return 100 * self.step

    @property
    def tokens(self) -> int:
        return 1000 + self.stage_tokens

    @property
    def flops(self) -> float:
        return 1e10 + 1e9 * self.step

    @property
    def seconds(self) -> float:
        return 5.0 + 0.5 * self.step


@pytest.fixture
def curriculum(tmp_path_factory: pytest.TempPathFactory) -> config.Curriculum:
    return small_curriculum(tmp_path_factory.mktemp("config"))


def write(folder: Path, curriculum: config.Curriculum, start: int, stop: int) -> None:
    stage = curriculum.stages[1]
    with Metrics(folder, curriculum, stage, At(start), world=4) as sink:
        sink.log(At(start), validation_loss=2.0, validation_bits_per_byte=1.0)
        for step in range(start + 1, stop + 1):
            sink.step(At(step), loss=1 / step, bits_per_byte=0.5 / step, grad_norm=3.0, lr=1e-3)
            if step % 4 == 0:
                sink.log(At(step), validation_loss=1.5 / step, validation_bits_per_byte=0.7 / step)


def test_a_record_every_interval_with_its_units(tmp_path: Path, curriculum: config.Curriculum) -> None:
    write(tmp_path, curriculum, 0, 5)
    first, two, *_ = records = list(metrics.read(tmp_path / "metrics.jsonl"))
    assert [(r["step"], "loss" in r) for r in records] == [(0, False), (2, True), (4, True), (4, False)]
    assert first == {
        "step": 0, "tokens": 1000, "flops": 1e10, "seconds": 5.0,
        "validation_loss": 2.0, "validation_bits_per_byte": 1.0,
    }  # fmt: skip
    assert two == {
        "step": 2, "tokens": 1200, "flops": 1.2e10, "seconds": 6.0, "loss": 0.5, "bits_per_byte": 0.25, "lr": 1e-3,
        "grad_norm": 3.0, "tokens_per_second": 200.0, "tokens_per_second_per_gpu": 50.0,
        "model_tflops_per_second_per_gpu": 5e-4,
    }  # fmt: skip


def test_mfu_where_the_peak_is_known(
    tmp_path: Path, curriculum: config.Curriculum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "peak_flops", lambda name, precision: 1e9)
    write(tmp_path, curriculum, 0, 2)
    assert list(metrics.read(tmp_path / "metrics.jsonl"))[-1]["mfu"] == pytest.approx(2e9 / 4 / 1e9)


@pytest.mark.parametrize("resumed", [4, 6])
def test_a_resumed_stage_writes_what_an_undisturbed_one_does(
    tmp_path: Path, curriculum: config.Curriculum, resumed: int
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", curriculum, 0, 10)
    write(tmp_path / "b", curriculum, 0, 8)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tok')  # cut off by a kill
    write(tmp_path / "b", curriculum, resumed, 10)
    whole, again = ([r for r in metrics.read(tmp_path / x / "metrics.jsonl") if "loss" in r] for x in "ab")
    assert again == whole
    steps = [r["step"] for r in metrics.read(tmp_path / "b" / "metrics.jsonl")]
    assert steps == sorted(steps)


def test_records_survive_a_kill(tmp_path: Path) -> None:
    record = {"step": 1, "tokens": 2, "flops": 3.0, "seconds": 4.0}
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom pretrain.stage.metrics import JsonLines\n"
        f"lines = JsonLines(Path({str(tmp_path / 'metrics.jsonl')!r}), 0)\n"
        f"lines.write({record})\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list(metrics.read(tmp_path / "metrics.jsonl")) == [record]


def test_plain_lines_when_it_is_no_terminal(
    tmp_path: Path, curriculum: config.Curriculum, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, curriculum, 0, 4)
    lines = capsys.readouterr().err.splitlines()
    steps = -(-curriculum.stages[1].train.tokens // (16 * 256))
    assert lines[0] == f"wide: step 0/{steps}, validation loss 2.0000, validation 1.0000 bits/byte"
    assert lines[1] == (
        f"wide: step 2/{steps}, loss 0.5000, 0.2500 bits/byte, lr 1.00e-03, grad norm 3.000, 200 tokens/s"
    )
    assert len(lines) == 4


def test_a_bar_on_a_terminal(
    tmp_path: Path,
    curriculum: config.Curriculum,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write(tmp_path, curriculum, 0, 4)
    err = capsys.readouterr().err
    assert "wide:" in err
    assert "token/s" in err
    assert "loss 0.2500" in err


def test_tensorboard_and_wandb_offline(
    tmp_path: Path, curriculum: config.Curriculum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    both = config.Log(interval=1, wandb=True, tensorboard=True)
    stages = tuple(dataclasses.replace(stage, log=both) for stage in curriculum.stages)
    write(tmp_path, dataclasses.replace(curriculum, stages=stages), 0, 2)
    wandb.teardown()  # its service writes what it still holds
    (events,) = (tmp_path / "tensorboard").iterdir()
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"bits_per_byte" in events.read_bytes()
    assert b"bits_per_byte" in run.read_bytes()
    assert run.stem == f"run-{(tmp_path / 'wandb-id').read_text()}"


def test_a_service_that_fails_does_not_stop_a_stage(
    tmp_path: Path,
    curriculum: config.Curriculum,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(metrics.Sink):
        def __init__(self, *_: object) -> None: ...

        def write(self, record: metrics.Record) -> None:
            raise OSError("disk quota exceeded")

    def unreachable(*_: object) -> metrics.Sink:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(metrics, "TensorBoard", Broken)
    monkeypatch.setattr(metrics, "WeightsAndBiases", unreachable)
    both = config.Log(interval=1, wandb=True, tensorboard=True)
    stages = tuple(dataclasses.replace(stage, log=both) for stage in curriculum.stages)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, dataclasses.replace(curriculum, stages=stages), 0, 4)
    assert len(list(metrics.read(tmp_path / "metrics.jsonl"))) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "wandb is off from here on: no route to host",
        "tensorboard is off from here on: disk quota exceeded",
    ]


def test_numbers_are_plain_json(tmp_path: Path, curriculum: config.Curriculum) -> None:
    write(tmp_path, curriculum, 0, 4)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(isinstance(value, (int, float)) for value in json.loads(line).values())
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_value_that_is_not_finite_is_left_out(
    tmp_path: Path, curriculum: config.Curriculum, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON has no such numbers, and what reads the file expects JSON; the console says so."""
    with Metrics(tmp_path, curriculum, curriculum.stages[1], At(0), world=4) as sink, caplog.at_level(logging.WARNING):
        sink.log(At(0), validation_loss=float("nan"), validation_bits_per_byte=float("inf"), other=1.0)
    (record,) = metrics.read(tmp_path / "metrics.jsonl")
    assert {"validation_loss", "validation_bits_per_byte"} & set(record) == set()
    assert record["other"] == 1.0
    assert "at step 0 not finite: validation_bits_per_byte, validation_loss" in caplog.text

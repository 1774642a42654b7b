"""The curves of a run."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from pretrain.report import history
from pretrain.report.plot import duration, short
from tests.unit.tools.run_folder import make_run
from tools import plot


def test_it_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert plot.main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "plot.png")
    image = matplotlib.image.imread(run / "plot.png")
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    assert image[..., :3].min() < 0.5  # something is drawn
    assert plot.main([str(run), "--out", str(tmp_path / "new" / "curves.svg")]) == 0
    assert "wide" in (tmp_path / "new" / "curves.svg").read_text()


def test_its_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert plot.main([str(run), "--json"]) == 0
    seed, wide = json.loads(capsys.readouterr().out)["stages"]
    assert (seed["stage"], wide["stage"]) == ("seed", "wide")
    assert wide["records"][0] == {
        "tokens": 6000, "flops": 6e12, "seconds": 60.0, "validation_loss": 5.0, "validation_bits_per_byte": 2.0
    }  # fmt: skip
    assert len(seed["records"]) == 5


def test_stages_are_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    run = make_run(tmp_path, finished=False)
    (run / "seed").rename(run / "zzz")
    stages = history.load(run)
    assert [(stage.name, stage.done) for stage in stages] == [("zzz", True), ("wide", False)]
    assert [stage.used("tokens") for stage in stages] == [6000, 6000]
    assert not stages[0].events
    (event,) = stages[1].events
    assert event.step == 0
    assert stages[1].architecture == event.new


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(tmp_path)]) == 2
    assert "no stage of a run has written metrics here" in capsys.readouterr().err
    run = make_run(tmp_path)
    (run / "wide" / "events" / "step-00000000.json").write_text("{")
    assert plot.main([str(run)]) == 2
    assert "wide: not the folder of a stage, or damaged" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    for name in ("curves.txt", "wide/metrics.jsonl/curves.png"):
        assert plot.main([str(run), "--out", str(run / name)]) == 2
        assert f"{name} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (656_000, "656k"), (6_738_415_616, "6.74B"), (2.5e18, "2.5e+18")]
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.008, "8 ms"), (4.1, "4.1 s"), (700, "11.7 min"), (9e4, "25 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text

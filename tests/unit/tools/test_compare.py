"""Comparisons of runs whose losses are known in advance."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml

import growth
from pretrain.config import load, stage_from
from pretrain.errors import UserError
from pretrain.report import comparison
from tests.unit.small import small_curriculum
from tests.unit.tools.run_folder import make_run
from tools import compare


def write(
    folder: Path,
    losses: Sequence[float],
    start: int = 0,
    patch: int | None = None,
    metric: str = "validation_loss",
    **data: Any,
) -> Path:
    """A finished stage with a validation every 10 steps of 100 tokens, 1e9 FLOPs and 2 s, from step `start` of the run;
    `patch`: the step of a growth event of 7 s that costs 5e9 FLOPs."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = small_curriculum(folder).stages[0]
    resolved = stage.to_dict()
    resolved["data"] |= data
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    records, extra = [], 0.0

    def record(step: int, loss: float) -> None:
        now = start + step
        records.append(
            {"step": step, "tokens": 100 * now, "flops": 1e9 * now + extra, "seconds": 2.0 * now, metric: loss}
        )

    for index, loss in enumerate(losses):
        record(10 * index, loss)
        if patch == 10 * index:
            extra = 5e9
            record(10 * index, loss + 1)
            arch = stage.model.architecture()
            plan = growth.between(arch, arch.replace({"layers": arch.sizes["layers"] + 1}), {}, seed=0, init_std=0.02)
            (folder / "events").mkdir()
            event = {"stage": stage.name, "plan": plan.to_json(), "certificate": None, "seconds": 7.0}
            (folder / "events" / f"step-{patch:08d}.json").write_text(json.dumps(event))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "DONE").write_text("{}")
    return folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert compare.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_each_needed_to_get_as_far_as_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Between two validations by a straight line, with a patch's FLOPs and seconds from the patch on. What came late of
    tasks on the checkpoint of the patch's step is none of its records."""
    fast = write(tmp_path / "fast", [8.0, 4.0, 1.0], patch=10)
    late = {"step": 10, "tokens": 1000, "flops": 10e9, "seconds": 20.0, "eval/some_task/acc": 0.5}
    with (fast / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(late) + "\n")
    never = write(tmp_path / "never", [8.0, 7.0, 5.0])
    last = write(tmp_path / "last", [8.0, 6.0, 3.0, 2.0])
    found = answer(capsys, str(fast), str(never), str(last), "--out", str(tmp_path / "out"))
    assert (found["metric"], found["target"]) == ("validation_loss", 2.0)
    rows = {row["run"]: row for row in found["rows"]}
    # after the patch at step 10 the loss is 5; at step 20 it is 1: it passes 2 at step 17.5
    assert rows["fast"]["reach"] == pytest.approx(
        {"iterations": 17.5, "tokens": 1750, "flops": 17.5e9 + 5e9, "seconds": 35 + 7}
    )
    assert rows["fast"]["ratio"]["flops"] == pytest.approx(22.5 / 30)
    assert rows["fast"]["ratio"]["seconds"] == pytest.approx(42 / 60)
    assert rows["fast"]["growth_seconds"] == 7.0
    assert rows["fast"]["parameters"] > rows["last"]["parameters"]  # the patch's layer
    assert rows["never"]["reach"] is None
    assert rows["last"]["reach"]["iterations"] == 30
    assert rows["last"]["ratio"]["flops"] == 1
    (event,) = found["lines"][0]["events"]
    assert event == {
        "iterations": 10, "tokens": 1000, "flops": 15e9, "seconds": 27.0, "patch": True, "event_seconds": 7.0
    }  # fmt: skip
    image = matplotlib.image.imread(tmp_path / "out" / "curves.png")
    assert image[..., :3].min() < 0.5
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 20 | 2k | 2.5e+10 | 47 s | 7 s | 1.0000 | - | 1.75k | 2.25e+10 | 42 s | 0.75 | 0.70 |" in table
    assert "| 5.0000 | - | never | - | - | - | - |" in table


def test_the_stages_of_a_run_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits per byte, although the vocabulary grows; the growth event's 3 s count, iterations go on."""
    run = make_run(tmp_path)
    found = answer(capsys, str(run), "--out", str(tmp_path / "out"))
    assert found["metric"] == "validation_bits_per_byte"
    (line,) = found["lines"]
    assert line["stages"] == ["seed", "wide"]
    assert [r["iterations"] for r in line["records"]] == [0, 2, 4, 6, 6, 6, 8, 10, 12, 12]
    assert [r["seconds"] for r in line["records"]][-6:] == [60, 63, 83, 103, 123, 123]
    assert [(e["iterations"], e["patch"], e["event_seconds"]) for e in line["events"]] == [(6, False, 3.0)]
    assert found["rows"][0]["held_out"] == 1.5


def test_stages_from_nothing_are_lines_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where one of them was grown further; single stages can be given in any order, the last is the goal."""
    write(tmp_path / "run" / "a", [8.0, 4.0])
    write(tmp_path / "run" / "b", [8.0, 6.0, 3.0])
    write(tmp_path / "run" / "b-grown", [3.0, 2.0], start=20)
    lines = comparison.lines([tmp_path / "run"])
    assert [(line.name, len(line.stages)) for line in lines] == [("a", 1), ("b-grown", 2)]
    found = answer(capsys, *(str(tmp_path / "run" / name) for name in ("b", "a")), "--out", str(tmp_path / "out"))
    assert [row["run"] for row in found["rows"]] == ["b", "a"]
    assert found["target"] == 4.0
    assert [line.name for line in comparison.lines([tmp_path / "run" / "a", write(tmp_path / "old/a", [2.0])])] == [
        "run/a",
        "old/a",
    ]


def test_the_training_loss_where_nothing_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mean over a twentieth of the records: it is the loss of one batch each."""
    one = write(tmp_path / "one", [3.0, 1.0] * 20, metric="loss")
    found = answer(capsys, str(one), "--out", str(tmp_path / "out"))
    assert (found["metric"], found["target"]) == ("loss", 2.0)
    assert found["rows"][0]["held_out"] is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"metric": "loss"}, "no common metric"),
        ({"vocab": 999}, "1024 pieces"),
        ({"start": 5}, "run folder of another schedule"),
        ({"losses": []}, "no stage of a run has written metrics"),
    ],
)
def test_what_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], message: str
) -> None:
    """One clear error each, and nothing is written."""
    write(tmp_path / "one" / "a", [8.0, 4.0])
    vocab = other.pop("vocab", None)
    two = write(tmp_path / "two" / "a", **{"losses": [8.0, 4.0], **other})
    if vocab:
        resolved = yaml.safe_load((two / "config.yaml").read_text())
        resolved["model"]["vocab"] = vocab
        (two / "config.yaml").write_text(yaml.safe_dump(resolved))
    out = tmp_path / "out"
    assert compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_not_a_run_and_one_given_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "give a run's folder" in capsys.readouterr().err
    one = str(write(tmp_path / "one", [8.0, 4.0]))
    assert compare.main([one, one, "--out", str(tmp_path / "out")]) == 2
    assert "one is there twice" in capsys.readouterr().err


def test_masked_losses_of_different_rates_do_not_compare(tmp_path: Path) -> None:
    """A loss per masked token depends on how many are masked."""
    lines = comparison.lines([write(tmp_path / "a", [2.0, 1.0]), write(tmp_path / "b", [2.0, 1.0], mask_rate=0.1)])
    assert comparison.common_metric(lines) == "validation_loss"  # llama2 masks nothing
    for name in "ab":
        path = tmp_path / name / "config.yaml"
        resolved = yaml.safe_load(path.read_text())
        resolved["model"] |= {"family": "bert"}
        path.write_text(yaml.safe_dump(resolved))
    with pytest.raises(UserError, match=r"0\.1 of words masked"):
        comparison.common_metric(comparison.lines([tmp_path / "a", tmp_path / "b"]))


@pytest.mark.parametrize("diverged", [float("nan"), float("inf")])
def test_runs_that_diverged(diverged: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a line it ends where it was last a number; as the yardstick it is refused. The answer is JSON."""
    good = write(tmp_path / "good", [8.0, 6.0, 3.0])
    bad = write(tmp_path / "bad", [8.0, 2.0, diverged, diverged], patch=20)
    found = answer(capsys, str(bad), str(good), "--out", str(tmp_path / "out"))
    assert found["rows"][0]["held_out"] is None
    assert found["rows"][0]["reach"]["iterations"] < 10
    assert found["lines"][0]["records"][-1]["validation_loss"] is None
    assert compare.main([str(good), str(bad), "--out", str(tmp_path / "again")]) == 2
    told = capsys.readouterr().err
    assert f"bad has diverged: its validation_loss is {diverged} after 30 iterations" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", [8.0, 6.0])
    (tmp_path / "file").write_text("x")
    assert compare.main([str(run), "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"validation_fraction": 0.3}, "data.validation_fraction 0.01 and 0.3"),
        ({"corpus": "elsewhere"}, "data.corpus .* and elsewhere"),
    ],
)
def test_losses_of_different_text_do_not_compare(
    changes: dict[str, Any], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even as bits per byte; runs of one text are compared as before."""
    metric = "validation_bits_per_byte"
    one, same = (write(tmp_path / name, [3.0, 2.0], metric=metric) for name in ("one", "same"))
    other = write(tmp_path / "other", [3.0, 2.0], metric=metric, **changes)
    assert compare.main([str(one), str(same), "--out", str(tmp_path / "out")]) == 0
    assert compare.main([str(one), str(other), "--out", str(tmp_path / "out")]) == 2
    assert re.search(f"{metric} of these runs is of different text.*{why}", capsys.readouterr().err)


def test_a_corpus_that_was_moved_is_the_same_text(tmp_path: Path) -> None:
    """By what is in it, not by its name; another one under the same kind of name is not."""
    description = {"xxh3_128": "0", "tokenizer": "1", "documents": 5, "tokens": 6}
    for name, content in (("here", {}), ("there", {}), ("other", {"documents": 7})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.json").write_text(json.dumps({**description, **content}))
    runs = [
        write(tmp_path / f"{name}-run", [3.0, 2.0], corpus=str(tmp_path / name)) for name in ("here", "there", "other")
    ]
    assert compare.main([str(runs[0]), str(runs[1]), "--out", str(tmp_path / "out")]) == 0
    assert compare.main([str(runs[0]), str(runs[2]), "--out", str(tmp_path / "out")]) == 2


def test_a_run_is_compared_by_its_average_if_it_keeps_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "averaged", [4.0, 3.0, 2.0])
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open("w") as out:
        for record in records:
            loss = record.get("validation_loss")
            print(json.dumps({**record, **({"validation_average_loss": loss - 0.5} if loss else {})}), file=out)
    (line,) = comparison.lines([folder])
    assert [point["value"] for point in line.curve("validation_loss")] == [3.5, 2.5, 1.5]


def test_what_is_recorded_for_the_demo_is_of_its_sizes() -> None:
    """Each run is one stage of a shape that the demo has, on its text, to its end."""
    root = Path(__file__).parents[3] / "configs"
    demo = load(root / "demo.yaml")
    shapes = {stage.model: stage for stage in demo.stages}
    for line in comparison.lines(sorted((root / "study/demo").glob("*/"))):
        (recorded,) = line.stages
        stage = stage_from(recorded.config, line.name)
        assert stage.model in shapes
        assert (stage.data, stage.seed) == (demo.stages[0].data, demo.stages[0].seed)
        assert line.records[-1]["tokens"] >= stage.train.tokens
        assert line.curve("validation_bits_per_byte")[-1]["tokens"] == line.records[-1]["tokens"]

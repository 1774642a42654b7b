"""The benchmarks at tiny sizes: that they run, and print what they measured. No time is asserted."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from growth.operators import OPERATORS
from pretrain.data.corpus.corpus import Corpus
from tests.distributed.harness import run
from tools.bench import main

TOOLS = Path(__file__).parents[3] / "tools"
TINY = ["--vocab", "64", "--hidden", "16", "--layers", "2", "--heads", "2", "--ffn", "24"]


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def step(*arguments: str) -> str:
    """What `bench.py step` prints, in a process of its own: it keeps process groups that other tests would inherit."""
    (said,) = run(1, _said, "step", *TINY, "--seq-len", "8", *arguments)
    return said


def test_rates_at_two_widths(corpus: Corpus, tmp_path: Path) -> None:
    """The base once, the other width with muP and without; what was run is not run again."""
    arguments = ["rates", "--corpus", str(corpus.path), "--widths", "16,32", "--rates", "1e-3,1e-2", "--vocab", "640"]
    arguments += ["--layers", "1", "--tokens", "2048", "--out", str(tmp_path), "--json"]
    (said,) = run(1, _said, *arguments)
    rows = json.loads(said)["rows"]
    assert [(row["width"], row["rates"]) for row in rows] == [("16", "base"), ("32", "without"), ("32", "muP")]
    made = [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text().splitlines()]
    assert len({line["loss"] for line in made}) == len(made) == 6
    assert all(row["best"] in ("0.001", "0.01") for row in rows)
    assert (tmp_path / "rates.png").stat().st_size > 1000
    assert run(1, _said, *arguments) == [said]
    assert len((tmp_path / "rates.jsonl").read_text().splitlines()) == 6


def _said(*arguments: str) -> str:
    sys.path.insert(0, str(TOOLS))
    with redirect_stdout(StringIO()) as said:
        assert main([*arguments]) == 0
    return said.getvalue()


def test_spans_save_keys(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "spans", "--seq-len", "256", "--heads", "2", "--head-dim", "8", "--rounds", "1")
    assert [(row["span"], row["keys"], row["fewer_FLOPs"]) for row in found] == [
        (32, 128, 2),
        (42, 192, 256 / 192),
        (256, 256, 1),
    ]
    assert all(row["within_ms"] > 0 for row in found)


def test_step_compares_one_model_in_three_loops() -> None:
    """The contestants begin with the same loss; they differ in nothing but the loop."""
    found = json.loads(step("--kv-heads", "1", "--rounds", "2", "--warm-up", "1", "--json"))["rows"]
    assert [row["contestant"] for row in found] == ["cambium", "bare megatron-core", "transformers"]
    assert found[0]["its_time/ours"] == 1
    assert all(row["ms_per_step"] > 0 and row["its_time/ours"] > 0 for row in found)
    assert len({round(row["first_loss"], 4) for row in found}) == 1


def test_teacher_compares_a_taught_step_with_its_parts() -> None:
    tiny = ["--vocab", "64", "--hidden", "16", "--teacher-hidden", "32", "--layers", "1", "--teacher-layers", "2"]
    how = ["--heads", "2", "--relation-heads", "4", "--seq-len", "8", "--rounds", "2", "--json"]
    (said,) = run(1, _said, "teacher", *tiny, *how)
    found = json.loads(said)["rows"]
    assert [row["kind"] for row in found] == ["minilm2", "minilm", "logits"]
    assert all(row[key] > 0 for row in found for key in ("student_ms", "teacher_ms", "taught_ms", "ratio"))


@pytest.mark.long
def test_step_compares_compiled_with_eager() -> None:
    found = json.loads(step("--compile", "--rounds", "1", "--warm-up", "1", "--json"))["rows"]
    assert [row["contestant"] for row in found][:2] == ["cambium", "cambium compiled"]
    assert found[1]["first_loss"] == pytest.approx(found[0]["first_loss"], rel=1e-5)


def test_step_compares_numbers_of_generations() -> None:
    found = json.loads(step("--generations", "1,2,4", "--rounds", "1", "--warm-up", "1", "--json"))["rows"]
    assert [row["contestant"] for row in found] == [
        f"{way}: {n}" for way in ("generations", "blocks") for n in (1, 2, 4)
    ]
    losses = [row["first_loss"] for row in found]
    assert len(set(losses[:3])) == 1  # the rates of generations are no part of the model
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5)  # blocks are summed in another order


def test_step_prints_a_table() -> None:
    title, settings, *table = step("--rounds", "1", "--warm-up", "1", "--precision", "bf16").splitlines()
    assert "Training step" in title
    assert "parameters 6,480" in settings
    assert any(line.startswith("bare megatron-core") for line in table)


def test_grow_measures_every_sparse_operator(capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["operator"]: row for row in rows(capsys, "grow", *TINY, "--rounds", "1")}
    sparse = {f"{o.key}: {o.name}" for named in OPERATORS.values() for o in named.values() if o.name != "dense"}
    assert {name.split(",")[0] for name in found} == sparse
    assert {"hidden: replicate, noise", "hidden: replicate, no noise"} <= set(found)
    assert all(row["moments_x_copy"] > 0 for row in found.values())
    assert found["head_dim: zero"]["family"] == "gpt2"
    assert found["vocab: random"]["drawing_x_numpy"] > 0
    assert found["layers: stack"]["drawing"] is None


def test_store_measures_ours_and_dcp(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And leaves nothing behind."""
    found = rows(capsys, "store", *TINY, "--rounds", "1", "--folder", str(tmp_path), "--skip", "deepspeed")
    named = {(row["operation"], row["cache"]): row for row in found}
    for operation in ("save, 2 ranks: ours", "load, 3 ranks: ours", "save, 2 ranks: DCP", "load, 3 ranks: DCP"):
        assert any(name == operation for name, _ in named)
    assert {"warm", "cold"} <= {cache for _, cache in named}
    assert all(row["seconds"] > 0 for row in found)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_recovery_kills_a_rank_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = rows(capsys, "recovery", "--kills", "2")
    assert found["kills"] == 2
    assert found["imports"] > 0
    assert found["worst"] >= found["median"] > found["noticed"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["step", "--heads", "3", "--kv-heads", "2"],
        ["grow", "--only", "nothing"],
        ["store", "--folder", "/does/not/exist"],
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [["step", "--rounds", "0"], ["recovery", "--kills", "0"], ["data", "--batch", "0"]]
)
def test_nothing_is_measured_no_times(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "'0' is no whole number from 1 on" in capsys.readouterr().err

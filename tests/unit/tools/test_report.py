"""The report of a run."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pretrain.judge import records
from pretrain.stage import trained
from tests.unit.tools.run_folder import make_run
from tools import plot, report


def export(folder: Path) -> None:
    """A tiny model with random weights and a tokenizer, as transformers writes them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = [f"word{i}" for i in range(50)]
    tokenizer.train_from_iterator([" ".join(words)], trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=52)
    LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=1)).save_pretrained(folder)


def test_stages_events_plot_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    export(run / "export")
    capsys.readouterr()  # libraries that are imported by now
    assert report.main([str(run), "--prompt", "word7 word8", "--prompt", "word3"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.md")
    text = (run / "report.md").read_text()
    assert (run / "plot.png").stat().st_size > 10_000
    assert "![loss and bits per byte over tokens, FLOPs and time](plot.png)" in text
    row = "| wide | 2 x 256 | 8 / 4 | 768 | 2,048 | 2 x 1 x 1 | 2,622,720 | 6k | 6e+12 | 60 s | 2.0000 to 1.5000 |"
    assert row in text
    assert "656,000 to 2,622,720 (x4.00) | preserved | 3e-07 | 0.50% of 1,000 | 2.5000 to 2.5500" in text
    assert "3 s (5.0% of the stage's training)" in text
    assert "\n> word7 word8 word" in text
    assert "\n> word3 word" in text
    assert "Not finished" not in text


def record(step: int, tokens: int, acc: float, failed: dict[str, str] | None = None) -> records.Record:
    result = {"metrics": {"acc": acc, "acc_norm": acc / 2}, "errors": {"acc_norm": 0.01}, "samples": 9, "fewshot": 5}
    place = {"tokens": tokens, "flops": 1e9 * tokens, "seconds": tokens / 100}
    about = {"limit": None, "harness": "lm-eval 1", "took": 1.0, "failed": failed or {}}
    return records.Record("hash", step, **place, results={"mine": result}, **about)


def test_what_is_known_of_tasks_and_of_what_was_trained(tmp_path: Path) -> None:
    """Over the run, and on both sides of a growth event; a failure with its reason."""
    run = make_run(tmp_path)
    plain = matplotlib.image.imread(plot_of(run)).shape[0]
    records.keep(run / "seed", record(3, 3000, 0.1))
    records.keep(run / "seed", record(6, 6000, 0.2))
    records.keep(run / "wide", record(0, 6000, 0.4, {"other": "no network"}))
    records.keep(run / "wide", record(4, 10000, 0.6))
    moved = [
        trained.Group("layers 0-1", ("x",), 0, "seed", 0.0, 600, 0.0),
        trained.Group("y", ("y",), 1, "wide", 2, 400),
    ]
    trained.keep(run / "wide", moved)
    assert matplotlib.image.imread(plot_of(run)).shape[0] > plain
    infinite = replace(
        record(5, 11000, 0.6), results={"mine": {**record(5, 11000, 0.6).results["mine"], "metrics": {}}}
    )
    records.keep(run / "wide", infinite)  # of a perplexity, say, of which nothing is kept
    records.keep(run / "imported", record(0, 0, 0.05))  # which nothing was trained of
    assert report.main([str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "| imported | 0 | 0 | 0 | mine | acc 0.0500" in text
    assert "| 3 s (5.0% of the stage's training) | mine 0.100 to 0.200 |" in text
    assert "| wide | 4 | 10,000 | 1e+13 | mine | acc 0.6000, acc_norm 0.3000 ± 0.0100 | 9, 5 shots |" in text
    assert "- wide, step 0: other: no network" in text
    assert "| layers 0-1 | 0 (seed) | 600 | 60.0% | frozen | nothing |" in text
    assert "| y | 1 (wide) | 400 | 40.0% | x 2 |  |" in text


def plot_of(run: Path) -> Path:
    assert plot.main([str(run)]) == 0
    return run / "plot.png"


def words(folder: Path, model: PreTrainedModel) -> None:
    """A model in place of the one that `export` makes."""
    export(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)


def test_a_model_with_few_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked for no more than fits, and a prompt that leaves no room is refused."""
    run = make_run(tmp_path)
    shape = dict(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=52)
    words(run / "export", GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=1)))
    assert report.main([str(run), "--prompt", "word7 word8", "--json"]) == 0
    (text,) = json.loads(capsys.readouterr().out)["texts"]
    assert text.startswith("word7 word8")
    assert len(text.split()) <= 8
    for prompt in ("word1 " * 8, "word1 " * 20, ""):
        assert report.main([str(run), "--prompt", prompt]) == 2
        told = capsys.readouterr().err
        assert "give 1 to 7, the model's positions" in told
        assert "Traceback" not in told


def test_an_encoder_writes_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=52)
    words(run / "export", MegatronBertForPreTraining(MegatronBertConfig(**shape, max_position_embeddings=512)))
    assert report.main([str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] is None
    assert "What the last model writes" not in (run / "report.md").read_text()
    assert report.main([str(run), "--prompt", "word1"]) == 2
    assert "no model in" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"model_type": "llama", "num_attention_heads": 0}', "{}"])
def test_a_broken_export(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    export(run / "export")
    (run / "export" / "config.json").write_text(broken)
    assert report.main([str(run)]) == 2
    assert str(run / "export") in capsys.readouterr().err


def test_figures_that_are_no_numbers_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json of every tool is JSON."""
    run = make_run(tmp_path)
    with (run / "wide" / "metrics.jsonl").open("a") as file:
        last = {"step": 7, "tokens": 13000, "flops": 1e13, "seconds": 130.0}
        record = {**last, "validation_bits_per_byte": float("nan"), "validation_loss": float("inf")}
        print(json.dumps(record), file=file)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    for tool, more in ((report, []), (plot, ["--out", str(tmp_path / "plot.png")])):
        assert tool.main([str(run), *more, "--json"]) == 0
        figures = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert figures["stages"][-1]["records"][-1]["validation_loss"] is None


def test_an_unfinished_run_without_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, finished=False)
    assert report.main([str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [row["done"] for row in figures["stages"]] == [True, False]
    assert figures["stages"][0]["parameters"] == 656_000
    assert figures["events"][0]["share_of_stage"] == pytest.approx(0.05)
    assert figures["texts"] is None
    text = (run / "report.md").read_text()
    assert "Not finished: wide." in text
    assert "What the last model writes" not in text


def test_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "no stage of a run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nothing is written where there is no run


def test_an_event_that_was_not_measured(tmp_path: Path) -> None:
    """Grown offline without a certificate: the event is there, and says so."""
    run = make_run(tmp_path)
    (path,) = run.glob("*/events/*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "certificate": None}))
    assert report.main([str(run)]) == 0
    assert "656,000 to 2,622,720 (x4.00) | not measured | - | - | - | 3 s" in (run / "report.md").read_text()


def test_a_patch_inside_a_stage(tmp_path: Path) -> None:
    """Has a row of its own, with its step, and the picture its line."""
    run = make_run(tmp_path)
    (path,) = run.glob("*/events/*.json")
    path.with_name("step-00000004.json").write_text(path.read_text())
    assert report.main([str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "\n| wide, step 4 | hidden: zero" in text
    assert "\n| wide | hidden: zero" in text


def recorded(run: Path, folder: Path, shape: str, flops: float, loss: float) -> None:
    """A run from scratch in the shape of a stage of `run`, which ended at this loss after so many FLOPs."""
    into = folder / f"{shape}-{flops:g}" / "whole"
    into.mkdir(parents=True)
    (into / "config.yaml").write_text((run / shape / "config.yaml").read_text())
    lines = [json.loads(line) for line in (run / "seed/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["flops"] *= flops / lines[-1]["flops"]
    lines[-1]["validation_bits_per_byte"] = loss
    (into / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_the_same_flops_buy_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends at 1.5 bits per byte with 1.2e13 FLOPs; what has used more does not count."""
    run, folder = make_run(tmp_path), tmp_path / "scratch"
    recorded(run, folder, "seed", 1.2e13, 1.6)
    recorded(run, folder, "seed", 2e13, 1.1)
    recorded(run, folder, "wide", 1.2e13, 1.9)
    recorded(run, folder, "wide", 0.9e13, 1.95)
    words = [str(run), "--scratch", str(folder)]
    assert report.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["from_scratch"]
    assert (said["loss"], said["same_size"]["loss"], said["best"]["loss"], said["pays"]) == (1.5, 1.9, 1.6, True)
    text = (run / "report.md").read_text()
    assert "From scratch, this size (2.62M parameters, wide-1.2e+13) ended at 1.9000 with 1.2e+13 FLOPs." in text
    assert "So growing paid" in text
    recorded(run, folder, "seed", 1e13, 1.4)
    assert report.main(words) == 0
    assert "growing did not pay" in (run / "report.md").read_text()


def test_nothing_from_scratch_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = make_run(tmp_path), tmp_path / "scratch"
    folder.mkdir()
    assert report.main([str(run), "--scratch", str(folder)]) == 2
    assert "there are no runs from scratch here" in capsys.readouterr().err
    recorded(run, folder, "seed", 5e13, 1.4)
    assert report.main([str(run), "--scratch", str(folder)]) == 0
    assert "at this size is not known" in (run / "report.md").read_text()

"""Draws the losses of models on maths text in one picture and tabulates what they cost and what they know.

Each RUN is the folder of a run. Its last stage is measured on TEXT, a corpus that none of them was trained or validated
on, by the reference model, and writes tokens. DIR gets loss.png and table.md.

example:
  python configs/reasoning/table.py configs/reasoning --test data/problems-test runs/reasoning-{gpt2,diverging}
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from growth import Architecture
from pretrain.cli import command
from pretrain.config import Stage, stage_from
from pretrain.data.corpus.corpus import Corpus
from pretrain.data.samples import part
from pretrain.errors import UserError
from pretrain.families.common.text import CausalFeed
from pretrain.families.text import open_feed
from pretrain.generate.sampling import Sampling
from pretrain.generate.write import continuation
from pretrain.hf.words import Written, open_model
from pretrain.report import comparison
from pretrain.report.comparison import Line
from pretrain.report.files import writing
from pretrain.report.markdown import table
from pretrain.report.plot import COLOURS, STYLE, formatter
from pretrain.verify.pruning import held_out_loss

TOKENS = 64  # that a model writes
HEADER = ("model", "heads", "width", "micro-batch", "context", "batches", "ms a batch", "final training loss")
HEADER += ("ms a generated token", "test batches", "test loss", "predicts", "bits per byte", "parameters")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run")
    parser.add_argument("--test", metavar="TEXT", type=Path, required=True, help="a corpus")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a run that is not done, and for models that write no text."""
    lines = comparison.lines(options.runs)
    if waiting := [line.name for line in lines if not line.done]:
        raise UserError(f"{', '.join(waiting)}: not finished yet")
    rows = [row(line, options.test) for line in lines]
    _draw(lines, rows, options.folder / "loss.png")
    text = markdown(rows)
    with writing(options.folder / "table.md"):
        (options.folder / "table.md").write_text(text, encoding="utf-8")
    return command.Answer(text.rstrip(), {"rows": rows})


def row(line: Line, test: Path) -> dict[str, Any]:
    """What the table says of a run, by the columns of HEADER."""
    last, end = line.stages[-1], line.records[-1]
    stage = stage_from(last.config, str(last.folder))
    model = open_model(last.folder)
    growing = sum(mark.seconds for mark in line.marks)
    measured = _measured(model, stage, test)
    values = (
        line.name,
        stage.model.heads,
        _widths(model.arch),
        stage.train.micro_batch,
        stage.train.seq_len,
        end["iterations"],
        1000 * (end["seconds"] - growing) / end["iterations"],
        line.curve("loss")[-1]["value"],
        _milliseconds(model),
        measured["batches"],
        measured["loss"],
        measured["ahead"],
        measured["bits_per_byte"],
        last.architecture.parameters(),
    )
    return dict(zip(HEADER, values, strict=True))


def _widths(arch: Architecture) -> tuple[int, int]:
    """The narrowest and the widest residual stream."""
    widths = [stream.width * arch.sizes["hidden"] for kind in arch.kinds for stream in arch.table.through(kind)]
    return min(widths), max(widths)


def _measured(model: Written, stage: Stage, test: Path) -> dict[str, Any]:
    """The loss on TEXT, in nats per label and in bits per byte, in so many batches; `ahead`: how far labels are."""
    documents = Corpus.open(test).tokens.documents
    data = replace(stage.data.only(str(test)), validation_fraction=1 - 1 / documents)  # one has to be left
    feed = open_feed(replace(stage, data=data, train=replace(stage.train, eval_bytes=1 << 40)))
    assert isinstance(feed, CausalFeed)
    micro_batch = stage.train.micro_batch
    text = feed.held_out(micro_batch)
    batches = len(text.samples["inputs"]) // micro_batch
    nats = labels = 0.0
    for number in range(batches):
        samples = part(text.samples, number, batches)
        count = float(samples["mask"].sum())
        nats += held_out_loss(model.read, model.arch, samples) * count
        labels += count
    assert text.bytes
    bits = nats / math.log(2) / text.bytes
    return {"batches": batches, "loss": nats / labels, "bits_per_byte": bits, "ahead": feed.ahead}


def _milliseconds(model: Written) -> float:
    """To write a token, in the mean over TOKENS of them, from a prompt of one."""
    prompt = model.encode("")
    how = {"tokens": TOKENS, "how": Sampling(), "seed": 0}
    list(islice(continuation(model.read, model.arch, prompt, **how), 2))
    began = time.perf_counter()
    written = list(continuation(model.read, model.arch, prompt, **how))
    return 1000 * (time.perf_counter() - began) / len(written)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table, and what its columns mean."""
    cells = [[_cell(name, value) for name, value in row.items()] for row in rows]
    return (
        f"{table(HEADER, cells)}\n\n"
        "Losses are in nats per label, that of training a mean over the last twentieth. Test documents were neither "
        "trained nor validated on. A loss of labels 64 places ahead, as Convolution Attention has them, is not "
        "comparable with one of the next token: the model has not seen what is between. Bits per byte are those of the "
        "same text predicted under each model's own rule: they say what that rule costs, and what the model knows. "
        f"Generated by the reference model, {TOKENS} tokens; times are of one core that was at work for others too.\n"
    )


def _cell(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(str(width) for width in dict.fromkeys(value))
    if name == "predicts":
        return f"{value} ahead"
    if isinstance(value, float):
        return f"{value:,.1f}" if name.startswith("ms") else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else value


def _draw(lines: Sequence[Line], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The training loss over batches, and bits per byte of held-out text over tokens."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for colour, line, row in zip(COLOURS, lines, rows, strict=False):
            for axes, x, metric in ((left, "iterations", "loss"), (right, "tokens", "validation_bits_per_byte")):
                points = line.curve(metric)
                label = f"{line.name} ({row['predicts']} ahead)"
                axes.plot([p[x] for p in points], [p["value"] for p in points], color=colour, label=label)
                axes.xaxis.set_major_formatter(formatter(x))
                for mark in line.marks:
                    axes.axvline(line.records[mark.record][x], color=colour, linewidth=0.6, linestyle=":")
        left.set_xlabel("batches")
        left.set_ylabel("training loss, nats per label")
        right.set_xlabel("tokens")
        right.set_ylabel("held-out text, bits per byte")
        left.legend(frameon=False)
        figure.supxlabel("dotted: growth event; losses of labels at other distances do not compare", fontsize=8)
        with writing(path):
            figure.savefig(path, dpi=85)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

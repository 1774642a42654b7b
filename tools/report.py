"""Writes RUN/report.md: the stages, the growth events, the curves, and text that the exported model, or with --prompt a
checkpoint without an export, writes.

examples:
  python tools/report.py runs/demo --prompt "In the beginning"
  python tools/report.py runs/demo --scratch runs/study-demo
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.errors import UserError
from pretrain.generate.sampling import Sampling as DrawnBy
from pretrain.generate.write import continuation
from pretrain.hf.words import Written, open_model
from pretrain.report import comparison, history, mixture, plot, spans, tasks
from pretrain.report.comparison import Line
from pretrain.report.continuation import CONFIG, Sampling, continuations, writes
from pretrain.report.files import writing
from pretrain.report.history import StageHistory
from pretrain.report.markdown import table
from pretrain.report.plot import duration, short
from pretrain.report.scratch import Verdict, sentences, verdict
from pretrain.stage import trained

BITS = "validation_bits_per_byte"


def stage_rows(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """The figures of each stage: shape, layout, parameters, tokens, FLOPs, seconds, bits per byte at both ends."""
    rows = []
    for stage in stages:
        sizes, parallel = stage.architecture.sizes, stage.config["parallel"]
        measured = [record[BITS] for record in stage.series(BITS)]
        rows.append(
            {
                "stage": stage.name,
                "done": stage.done,
                "shape": dict(sizes),
                "blocks": stage.architecture.depth,
                "layout": {key: parallel[key] for key in ("tp", "pp", "dp")},
                "parameters": stage.architecture.parameters(),
                "tokens": stage.used("tokens"),
                "flops": stage.used("flops"),
                "seconds": stage.used("seconds"),
                "bits_per_byte_first": measured[0] if measured else None,
                "bits_per_byte_last": measured[-1] if measured else None,
            }
        )
    return rows


def event_rows(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """The figures of each growth event: what it did, its certificate, and its time against that of its stage."""
    return [
        {
            "stage": stage.name,
            "step": event.step,
            "parameters_before": event.old.parameters(),
            "parameters_after": event.new.parameters(),
            "seconds": event.seconds,
            "share_of_stage": event.seconds / max(stage.used("seconds"), 1e-9),
            "tasks": tasks.change(*tasks.around(stages, stage, event)),
            **(event.certificate.to_json() if event.certificate else {}),
        }
        for stage in stages
        for event in stage.events
    ]


def markdown(
    name: str,
    stages: Sequence[StageHistory],
    texts: Sequence[str] | None,
    beside: Verdict | None = None,
    source: str = "",
) -> str:
    """The report. beside: what the same FLOPs buy from scratch. source: of the texts, in words."""
    parts = [f"# {name}", _summary(stages), "## Stages", _stage_table(stage_rows(stages))]
    if events := event_rows(stages):
        parts += ["## Growth events", _event_table(events), EVENT_NOTES]
    parts += mixture.markdown(stages)
    parts += spans.markdown(stages)
    parts += _trained(stages)
    parts += tasks.markdown(stages)
    if beside is not None:
        parts += ["## What the same FLOPs buy from scratch", "\n".join(f"- {line}" for line in sentences(beside))]
    parts += ["## Curves", "![loss and bits per byte over tokens, FLOPs and time](plot.png)"]
    if texts is not None:
        parts += ["## What the last model writes", f"Sampled from {source}."]
        parts += ["\n".join(f"> {line}" for line in text.splitlines() or [""]) for text in texts]
    return "\n\n".join(parts) + "\n"


EVENT_NOTES = """- *logits differ*: max |new - old| / max |old| on held-out text, over the old vocabulary.
- *dead*: new parameters whose gradient is zero before and after a step, of those that the batch can reach.
- *bits per byte*: the old model with its vocabulary, and the grown one with the new vocabulary before any training.
- *tasks*: the last evaluation before, and the first one after, by the first metric that a task has."""

TRAINED_NOTES = """Parameters by the growth event in which they were born. *rate*: what the stage's learning rate was
multiplied by; frozen: 0. *moved by*: ||end - start|| / ||start||, from the growth event to the end of the stage; empty
where the stage has not ended, or where all were zero at its start."""


def _trained(stages: Sequence[StageHistory]) -> list[str]:
    """What each stage that has grown trained and what not, and how far it moved."""
    known = [stage for stage in stages if stage.events and stage.trained]
    if not known:
        return []
    parts = ["## What was trained", TRAINED_NOTES]
    for stage in known:
        header, *cells = trained.rows(stage.trained)
        parts += [f"**{stage.name}**", table(header, cells)]
    return parts


def _summary(stages: Sequence[StageHistory]) -> str:
    first, last = stages[0], stages[-1]
    text = (
        f"{len(stages)} stages, {short(first.architecture.parameters())} to {short(last.architecture.parameters())} "
        f"parameters, {short(last.end['tokens'])} tokens, {last.end['flops']:.3g} FLOPs, "
        f"{duration(last.end['seconds'])} of training."
    )
    unfinished = [stage.name for stage in stages if not stage.done]
    return text + (f" Not finished: {', '.join(unfinished)}." if unfinished else "")


def _stage_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["stage", "layers x hidden", "heads / kv", "ffn", "vocabulary", "TP x PP x DP", "parameters", "tokens"]
    header += ["FLOPs", "training", "bits per byte"]
    cells = []
    for row in rows:
        shape, layout = row["shape"], row["layout"]
        bits = "-"
        if row["bits_per_byte_first"] is not None:
            bits = f"{row['bits_per_byte_first']:.4f} to {row['bits_per_byte_last']:.4f}"
        cells.append(
            [
                row["stage"] if row["done"] else f"{row['stage']} (not finished)",
                f"{row['blocks']} x {shape['hidden']}",
                f"{shape['heads']} / {shape.get('kv_heads', shape['heads'])}",
                f"{shape['ffn']:,}",
                f"{shape['vocab']:,}",
                " x ".join(str(layout[key] or "any") for key in ("tp", "pp", "dp")),
                f"{row['parameters']:,}",
                short(row["tokens"]),
                f"{row['flops']:.3g}",
                duration(row["seconds"]),
                bits,
            ]
        )
    return table(header, cells)


def _event_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["into stage", "operators", "parameters", "function", "logits differ", "dead", "bits per byte", "event"]
    header += ["tasks"] if any(row["tasks"] for row in rows) else []
    cells = []
    for row in rows:
        size = (
            f"{row['parameters_before']:,} to {row['parameters_after']:,}"
            f" (x{row['parameters_after'] / row['parameters_before']:.2f})"
        )
        where = f"{row['stage']}, step {row['step']}" if row["step"] else row["stage"]
        took = f"{duration(row['seconds'])} ({row['share_of_stage']:.1%} of the stage's training)"
        if "preserved" not in row:
            cells.append([where, "-", size, "not measured", "-", "-", "-", took, row["tasks"]][: len(header)])
            continue
        counted = sum(count for _, count in row["dead"].values())
        bits = "-"
        if row["bits_per_byte_before"] is not None and row["bits_per_byte_after"] is not None:
            bits = f"{row['bits_per_byte_before']:.4f} to {row['bits_per_byte_after']:.4f}"
        cells.append(
            [
                where,
                ", ".join(row["operators"]),
                size,
                "preserved" if row["preserved"] else "changed",
                f"{row['error']:.2g}",
                f"{row['dead_share']:.2%} of {counted:,}",
                bits,
                took,
                row["tasks"],
            ][: len(header)]
        )
    return table(header, cells)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--scratch", metavar="DIR", type=Path, help="recorded runs of fixed sizes, to compare with")
    parser.add_argument(
        "--prompt", action="append", help="what the exported model, or the last checkpoint, goes on from"
    )


def _whole(run: Path) -> Line:
    """The stages as one line. Raises UserError where some did not grow out of the others."""
    lines = comparison.lines([run])
    if len(lines) > 1:
        raise UserError(f"--scratch: {run} has several stages without a parent, so it is not one run that grew")
    return lines[0]


def work(options: argparse.Namespace) -> Answer:
    """Writes the report and says where; the data are its figures."""
    run: Path = options.run
    stages = history.load(run)
    beside = verdict(_whole(run), options.scratch) if options.scratch else None
    plot.draw(stages, run.resolve().name, run / "plot.png")
    if spans.of(stages):
        spans.draw(stages, run / spans.PICTURE)
    texts, source = None, "`export/` through transformers"
    if writes(run / "export"):
        texts = continuations(run / "export", options.prompt or ["The"], Sampling())
    elif options.prompt and (run / "export" / CONFIG).is_file():
        raise UserError(f"--prompt: there is no model in {run / 'export'} that writes text")
    elif options.prompt:
        model = open_model(run)
        texts, source = _written(model, options.prompt), f"`{model.source}` by the reference model"
    with writing(run / "report.md"):
        (run / "report.md").write_text(markdown(run.resolve().name, stages, texts, beside, source), encoding="utf-8")
    figures: dict[str, Any] = {
        "stages": stage_rows(stages),
        "events": event_rows(stages),
        "corpora": mixture.rows(stages),
        "tasks": tasks.figures(stages),
        "spans": spans.figures(stages),
        "texts": texts,
    }
    if beside is not None:
        figures["from_scratch"] = {**asdict(beside), "pays": beside.pays}
    return Answer(str(run / "report.md"), figures)


def _written(model: Written, prompts: Sequence[str]) -> list[str]:
    """What a checkpoint writes by itself, where there is no export."""
    usual = Sampling()
    how, texts = DrawnBy(usual.temperature, top_p=usual.top_p), []
    for prompt in prompts:
        ids = model.encode(prompt)
        given = partial(continuation, tokens=usual.tokens, how=how, seed=usual.seed, ends=model.ends)
        new = given(model.read, model.arch, ids, memory=model.memory)
        texts.append(model.decode([*ids, *new]))
    return texts


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

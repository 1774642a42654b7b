"""Compares runs: their losses over iterations, tokens, FLOPs and time in one picture, and what each needed to get as
far as the last one.

A RUN is the folder of a run, or of one stage of it; a run folder in which several stages began from nothing is a line
for each of them. DIR gets curves.png and table.md.

examples:
  python tools/compare.py runs/grown runs/from-scratch --out comparison
  python tools/compare.py runs/bert-layers/layers-1-to-10 runs/bert-layers/layers-12 --out comparison
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.report import comparison, comparison_plot
from pretrain.report.comparison import AXES
from pretrain.report.files import writing
from pretrain.report.markdown import table
from pretrain.report.plot import ROWS, duration, short


def markdown(rows: Sequence[dict[str, Any]], metric: str, target: float) -> str:
    """The table of the comparison, and what its columns mean."""
    name, last = ROWS[metric.removeprefix("validation_")], rows[-1]["run"]
    held_out = "held-out" if metric.startswith("validation_") else "training"
    header = ["run", "parameters", "iterations", "tokens", "FLOPs", "time", "of it growth", "held-out", "training"]
    header += [f"to {target:.4f}: tokens", "FLOPs", "time", "FLOPs, ratio", "time, ratio"]
    cells = []
    for row in rows:
        reach, ratio = row["reach"], row["ratio"]
        cells.append(
            [
                row["run"] if row["done"] else f"{row['run']} (not finished)",
                f"{row['parameters']:,}",
                f"{row['iterations']:,}",
                short(row["tokens"]),
                f"{row['flops']:.3g}",
                duration(row["seconds"]),
                duration(row["growth_seconds"]),
                *(f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("held_out", "training")),
                *(
                    (short(reach["tokens"]), f"{reach['flops']:.3g}", duration(reach["seconds"]))
                    if reach
                    else ("never", "-", "-")
                ),
                *(f"{ratio[key]:.2f}" if ratio else "-" for key in ("flops", "seconds")),
            ]
        )
    return (
        f"{table(header, cells)}\n\n"
        f"*held-out*, *training*: {name} at the end, of training a mean over its last twentieth. *to {target:.4f}*: "
        f"until the {held_out} loss first was what {last} ended with; *ratio*: to what {last} had used by then. FLOPs "
        "and time are those of training and growth events.\n"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, or of one of its stages")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the picture and the table")


def work(options: argparse.Namespace) -> Answer:
    """Writes the picture and the table; the text is the table, the data are the points and the rows."""
    compared = comparison.lines(options.runs)
    metric = comparison.common_metric(compared)
    target = comparison.target(compared, metric)
    rows = comparison.rows(compared, metric)
    text = markdown(rows, metric, target)
    comparison_plot.draw(compared, metric, target, options.out / "curves.png")
    with writing(options.out / "table.md"):
        (options.out / "table.md").write_text(text, encoding="utf-8")
    return Answer(text.rstrip(), {"metric": metric, "target": target, "rows": rows, "lines": _points(compared)})


def _points(compared: Sequence[comparison.Line]) -> list[dict[str, Any]]:
    keys = (*AXES, *comparison.METRICS)
    return [
        {
            "run": line.name,
            "stages": [stage.name for stage in line.stages],
            "records": [{key: record[key] for key in keys if key in record} for record in line.records],
            "events": [
                {**{x: line.records[mark.record][x] for x in AXES}, "patch": mark.patch, "event_seconds": mark.seconds}
                for mark in line.marks
            ],
        }
        for line in compared
    ]


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

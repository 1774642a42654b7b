"""The curves of several runs in one picture, over each of the axes on which they may be compared."""

from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pretrain.report.comparison import Line
from pretrain.report.files import writing
from pretrain.report.plot import COLOURS, COLUMNS, ROWS, STYLE, formatter

LABELS = {"iterations": "iterations", **COLUMNS, "seconds": "time of training and growth events"}
DASHES = ("-", "--", ":")  # line styles, the next one each time that the colours are used up


def draw(compared: Sequence[Line], metric: str, target: float, path: Path) -> None:
    """Draws the lines and writes them as an image (PNG, or what the suffix says).

    The held-out loss is a thick line and the training loss a thin one; a diamond marks a growth event between stages,
    a tick a patch, a dashed level `target`. Raises UserError when it cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        grid = figure.subplots(2, 2, sharey=True)
        for x, axes in zip(LABELS, grid.flat, strict=True):
            for index, line in enumerate(compared):
                _line(axes, line, x, metric, COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % 3])
            axes.axhline(target, color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
            axes.set_xlabel(LABELS[x])
            axes.xaxis.set_major_formatter(formatter(x))
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlim(left=0)
        grid[0][0].set_ylim(*_limits(compared, metric))
        for row in grid:
            row[0].set_ylabel(ROWS[metric.removeprefix("validation_")])
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        figure.supxlabel(
            f"{'thick: held-out text, thin: training; ' if metric.startswith('validation_') else ''}diamond: growth "
            f"event, tick: patch, dashed: where {compared[-1].name} ended",
            fontsize=8,
            color="#666666",
        )
        with writing(path):
            figure.savefig(path, dpi=85)


def _line(axes: Axes, line: Line, x: str, metric: str, colour: str, dashes: str) -> None:
    held_out = metric.startswith("validation_")
    if held_out and (training := line.curve(metric.removeprefix("validation_"))):
        axes.plot([p[x] for p in training], [p["value"] for p in training], color=colour, linewidth=0.7, alpha=0.35)
    points = line.curve(metric)
    axes.plot(
        [p[x] for p in points],
        [p["value"] for p in points],
        label=line.name,
        color=colour,
        linestyle=dashes,
        linewidth=1.6,
        marker="." if held_out else "",
        markersize=4,
    )
    for mark in line.marks:
        later = (r[metric] for r in line.records[mark.record :] if isfinite(r.get(metric, nan)))
        after = next(later, points[-1]["value"])
        at, size = line.records[mark.record][x], 9 if mark.patch else 5
        axes.plot([at], [after], marker="|" if mark.patch else "D", markersize=size, color=colour, linestyle="none")


def _limits(compared: Sequence[Line], metric: str) -> tuple[float, float]:
    """Limits of the metric's axis that show what comes after the first tenth of the longest line.

    The fall from a fresh model would dwarf the rest.
    """
    begin = max(line.records[-1]["tokens"] for line in compared) / 10
    ends = [line.curve(metric)[-1]["value"] for line in compared]
    values = ends + [p["value"] for line in compared for p in line.curve(metric) if p["tokens"] >= begin]
    margin = 0.04 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin

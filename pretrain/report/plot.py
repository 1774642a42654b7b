"""The curves of a run: loss and bits per byte over tokens, FLOPs and time, with its stages marked; and tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator

from pretrain.report import tasks
from pretrain.report.files import writing
from pretrain.report.history import StageHistory

TASKS = "tasks"
ROWS = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte"}
COLUMNS = {"tokens": "tokens", "flops": "FLOPs, cumulative", "seconds": "training time"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
COLOURS = ("#2f6d8e", "#c8702a", "#3f8f4f", "#8a4f9e", "#b23a48", "#6b6b2d", "#3d5a98", "#8c564b")


def draw(stages: Sequence[StageHistory], title: str, path: Path) -> None:
    """Draws a run and writes it as an image (PNG, or what the suffix says).

    Training loss is a thin line, validation loss a thick one with dots; each stage has a colour; a dotted line marks
    a patch. Raises UserError when it cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        rows = {**ROWS, **({TASKS: "tasks"} if tasks.series(stages) else {})}
        figure = Figure(figsize=(14, 3.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(COLUMNS), sharex="col", sharey="row", squeeze=False)
        for row, (y, y_label) in enumerate(rows.items()):
            for column, (x, x_label) in enumerate(COLUMNS.items()):
                axes = grid[row][column]
                if y == TASKS:
                    _tasks(axes, stages, x, legend=column == 0)
                else:
                    _curves(axes, stages, x, y)
                _stages(axes, stages, x)
                if column == 0:
                    axes.set_ylabel(y_label)
                if row == 0:
                    _names(axes, stages, x)
                if row == len(rows) - 1:
                    axes.set_xlabel(x_label)
                    axes.xaxis.set_major_formatter(formatter(x))
                    axes.xaxis.set_major_locator(MaxNLocator(6))
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.supxlabel(
            "thin: training, thick: held-out text. A loss per token is not comparable when the vocabulary grows; bits "
            "per byte are.",
            fontsize=8,
            color="#666666",
        )
        with writing(path):
            figure.savefig(path, dpi=130)


def points(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """The values that are drawn, for machines: each stage's records, with the keys of both axes."""
    keys = [*COLUMNS, *ROWS, *(f"validation_{y}" for y in ROWS)]
    return [
        {"stage": stage.name, "records": [{k: r[k] for k in keys if k in r} for r in stage.records]} for stage in stages
    ]


def _curves(axes: Axes, stages: Sequence[StageHistory], x: str, y: str) -> None:
    for index, stage in enumerate(stages):
        colour = COLOURS[index % len(COLOURS)]
        training, validation = stage.series(y), stage.series(f"validation_{y}")
        axes.plot([r[x] for r in training], [r[y] for r in training], color=colour, linewidth=0.9, alpha=0.55)
        axes.plot(
            [r[x] for r in validation],
            [r[f"validation_{y}"] for r in validation],
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3,
        )


def _tasks(axes: Axes, stages: Sequence[StageHistory], x: str, legend: bool) -> None:
    """The headline of each task, and its standard error where that is known."""
    for index, (name, measured) in enumerate(tasks.series(stages).items()):
        task, _, metric = name.rpartition(", ")
        errors = [record.results[task]["errors"].get(metric, 0.0) for record, _ in measured]
        places, values = [getattr(record, x) for record, _ in measured], [value for _, value in measured]
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(places, values, errors, color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
    if legend:
        axes.legend(fontsize=8, frameon=False)


def _stages(axes: Axes, stages: Sequence[StageHistory], x: str) -> None:
    """Marks the stages, and the patches in them."""
    for index, stage in enumerate(stages):
        colour = COLOURS[index % len(COLOURS)]
        axes.axvspan(stage.start[x], stage.end[x], color=colour, alpha=0.05, linewidth=0)
        if index:
            axes.axvline(stage.start[x], color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
        for event in stage.events:
            if event.step:  # this one is a patch
                axes.axvline(stage.reached(event.step)[x], color=colour, linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set_xlim(stages[0].start[x], max(stages[-1].end[x], stages[0].start[x] + 1))


def _names(axes: Axes, stages: Sequence[StageHistory], x: str) -> None:
    """Writes the stages' names above their parts of the axis, where there is room."""
    low, high = axes.get_xlim()
    for index, stage in enumerate(stages):
        room = (stage.end[x] - stage.start[x]) / (high - low)
        if room < 0.04:
            continue
        size = f"{short(stage.architecture.parameters())}{' parameters' if room > 0.2 else ''}"
        axes.annotate(
            f"{stage.name}\n{size}",
            ((stage.start[x] + stage.end[x]) / 2, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=8,
            color=COLOURS[index % len(COLOURS)],
        )


def formatter(x: str) -> Formatter:
    """Formats the ticks of an axis: times as people say them, other numbers with a letter."""
    if x == "seconds":
        return FuncFormatter(lambda seconds, _: duration(seconds))
    return EngFormatter(sep="")


def short(number: float) -> str:
    """A number as three digits and a letter: 656k, 2.62M, 6.74B; powers of ten from 1e12 on."""
    if abs(number) >= 1e12:
        return f"{number:.3g}"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """A duration as people say it: 8 ms, 45 s, 12 min, 3.5 h."""
    if 0 < seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"

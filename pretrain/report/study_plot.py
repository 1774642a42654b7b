"""The pictures of a study: loss over FLOPs with the frontier of fixed sizes, saving over the time of growth."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pretrain.report.files import writing
from pretrain.report.plot import COLOURS, ROWS, STYLE
from pretrain.report.study import Result, Row

MARKERS = "oDsv^P*X"


def loss_over_flops(made: Result, path: Path) -> None:
    """Draws final losses over FLOPs: fixed sizes as grey dots with their frontier, a marker for each recipe, and the
    held-out curve of the target from scratch. Writes a PNG, or what the suffix says; raises UserError when it cannot.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.5), layout="constrained")
        axes = figure.subplots()
        curve = made.lines[made.target.name].curve(made.metric)
        ends = [row.end.value for row in made.rows]
        axes.plot([p["flops"] for p in curve], [p["value"] for p in curve], color="#bbbbbb", linewidth=1, zorder=1)
        axes.plot(
            [flops for flops, _, _ in made.frontier.points],
            [loss for _, loss, _ in made.frontier.points],
            color="#444444",
            linestyle="--",
            linewidth=1.2,
            label="frontier of fixed sizes",
        )
        grown = 0
        for row in made.rows:
            loss = made.lines[row.entry.name].curve(made.metric)[-1]["value"]
            at = (row.used["flops"], loss)
            if row.entry.scratch:
                axes.plot(*at, marker="o", color="#888888", markersize=5, linestyle="none")
                axes.annotate(
                    row.entry.name, at, xytext=(4, 4), textcoords="offset points", fontsize=6, color="#666666"
                )
                continue
            colour, marker = COLOURS[grown % len(COLOURS)], MARKERS[grown // len(COLOURS) % len(MARKERS)]
            axes.plot(*at, marker=marker, color=colour, markersize=7, linestyle="none", label=row.entry.name)
            grown += 1
        axes.axhline(made.goal, color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
        margin = 0.1 * (max(ends) - min(ends)) or 0.05
        axes.set_ylim(min(ends) - margin, max(ends) + margin)
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of training and growth, cumulative")
        axes.set_ylabel(ROWS[made.metric.removeprefix("validation_")])
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
        figure.supxlabel(
            f"grey: sizes from scratch (dots: their ends; line: {made.target.name}); dashed level: where it ended; one "
            "seed, each at the best rate of the same search",
            fontsize=8,
            color="#666666",
        )
        with writing(path):
            figure.savefig(path, dpi=100)


def saving_over_time(made: Result, path: Path) -> None:
    """Draws, for each recipe over the share of the tokens at which it first grows, which share of the target's FLOPs it
    saves until the target's final loss, and how far from this loss it ends. Writes and raises as `loss_over_flops`."""
    recipes: dict[str, list[Row]] = {}
    for row in made.rows:
        if row.entry.until:
            recipes.setdefault(row.entry.recipe, []).append(row)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        saving, gap = figure.subplots(2, 1, sharex=True)
        for number, (name, rows) in enumerate(recipes.items()):
            rows.sort(key=lambda row: row.entry.until[0])
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
            saved = [(row.entry.until[0], 1 - row.ratio["flops"].value) for row in rows if row.ratio]
            saving.plot([x for x, _ in saved], [y for _, y in saved], label=name, markersize=6, linewidth=1, **style)
            gaps = [(row.entry.until[0], row.gap_tokens.value) for row in rows if row.gap_tokens]
            gap.plot([x for x, _ in gaps], [y for _, y in gaps], markersize=6, linewidth=1, **style)
        for axes in (saving, gap):
            axes.axhline(0, color="#999999", linewidth=0.8, linestyle=(0, (3, 3)))
        saving.set_ylabel("FLOPs saved to the target's final loss")
        saving.yaxis.set_major_formatter(PercentFormatter(1.0))
        gap.set_ylabel(f"{ROWS[made.metric.removeprefix('validation_')]}: end less the target's")
        gap.set_xlabel("share of the tokens before the first growth")
        gap.set_xlim(0, 1)
        figure.legend(loc="outside right upper", frameon=False, fontsize=7)
        figure.supxlabel("above: what never gets there is not drawn", fontsize=8, color="#666666")
        with writing(path):
            figure.savefig(path, dpi=100)

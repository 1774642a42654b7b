"""How far the heads of a run's models see, where they learn it: a picture, and figures at the end of each stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pretrain.report.files import writing
from pretrain.report.history import StageHistory
from pretrain.report.plot import STYLE

PICTURE = "spans.png"
OF_A_HEAD = re.compile(r"span_(\d+)_(\d+)")


@dataclass(frozen=True)
class Spans:
    """Of one stage: the tokens of the run at its validations, the blocks with attention, and the span of each of their
    heads there, in tokens, [validations, blocks, heads]."""

    stage: str
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    by_head: NDArray[np.float64]


def of(stages: Sequence[StageHistory]) -> list[Spans]:
    """Of the stages whose heads have spans. Where layers were added in a stage, its records since then."""
    known = []
    for stage in stages:
        measured = [(r["tokens"], _spans(r)) for r in stage.records if any(map(OF_A_HEAD.fullmatch, r))]
        measured = [(tokens, spans) for tokens, spans in measured if spans.keys() == measured[-1][1].keys()]
        if measured:
            blocks = sorted({block for block, _ in measured[-1][1]})
            heads = 1 + max(head for _, head in measured[-1][1])
            table = [[[spans[block, head] for head in range(heads)] for block in blocks] for _, spans in measured]
            known.append(Spans(stage.name, tuple(tokens for tokens, _ in measured), tuple(blocks), np.array(table)))
    return known


def _spans(record: dict[str, Any]) -> dict[tuple[int, int], float]:
    return {(int(m[1]), int(m[2])): value for key, value in record.items() if (m := OF_A_HEAD.fullmatch(key))}


def figures(stages: Sequence[StageHistory]) -> list[dict[str, Any]]:
    """At the end of each stage: the mean over all heads, the longest span, and the mean of each block."""
    return [
        {
            "stage": spans.stage,
            "mean": float(spans.by_head[-1].mean()),
            "longest": float(spans.by_head[-1].max()),
            "means": dict(zip(map(str, spans.blocks), spans.by_head[-1].mean(1).tolist(), strict=True)),
        }
        for spans in of(stages)
    ]


def markdown(stages: Sequence[StageHistory]) -> list[str]:
    """The section; empty where no head has a span."""
    lines = [
        f"- **{row['stage']}**: {row['mean']:.1f} tokens in the mean, {row['longest']:.1f} at most, before what they "
        "see fades"
        for row in figures(stages)
    ]
    return ["## How far heads see", "\n".join(lines), f"![spans of heads over tokens]({PICTURE})"] if lines else []


def draw(stages: Sequence[StageHistory], path: Path) -> None:
    """Draws the span of every head over tokens, and writes it as an image: a panel for each stage, in it a row for each
    head, those of a block between lines, the first block at the top. Raises UserError when it cannot be written."""
    known = of(stages)
    longest = max(float(spans.by_head.max()) for spans in known)
    rows = max(spans.by_head[0].size for spans in known)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3 + 4 * len(known), 2 + min(12, 0.14 * rows)), layout="constrained")
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for spans, axes in zip(known, panels, strict=True):
            values = spans.by_head.reshape(len(spans.tokens), -1).T  # [blocks x heads, validations]
            edges = np.append(spans.tokens, spans.tokens[-1] + (np.diff(spans.tokens)[-1] if len(values[0]) > 1 else 1))
            norm = SymLogNorm(linthresh=8, vmin=0, vmax=max(longest, 1.0))
            mesh = axes.pcolormesh(edges, np.arange(len(values) + 1), values, norm=norm, cmap="viridis")
            heads = spans.by_head.shape[2]
            for block in range(1, len(spans.blocks)):
                axes.axhline(block * heads, color="white", linewidth=0.8)
            axes.set_yticks(heads * (np.arange(len(spans.blocks)) + 0.5), [str(block) for block in spans.blocks])
            axes.set(ylim=(len(values), 0), xlabel="tokens", title=spans.stage)
        panels[0].set_ylabel("block, and in it a row for each head")
        figure.colorbar(mesh, ax=list(panels), label="span in tokens")
        with writing(path):
            figure.savefig(path, dpi=130)

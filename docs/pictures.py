"""Draws the pictures of the documents: python docs/pictures.py

The same pictures every time, as SVG and without a library; a test compares them with the files that are kept.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

HERE = Path(__file__).parent


class Station(NamedTuple):
    """A box of the picture: its title, its room, and what happens there."""

    title: str
    room: str
    what: str


WIDTH, HEIGHT, TOP, WIDE, TALL, STEP = 1000, 474, 60, 168, 164, 204
STATIONS = (
    Station(
        "YAML", "pretrain/config/", "a curriculum: stages, each with the shape that it is to have and its training"
    ),
    Station(
        "stage", "pretrain/stage/", "resumes, grows or begins; then steps, validations, checkpoints, until it ends"
    ),
    Station(
        "event", "pretrain/event/", "measures the old model, fills the new one, certifies what the growth has done"
    ),
    Station("engine", "pretrain/engine/", "Megatron-core's model and schedules, ZeRO-1, AdamW with generations"),
    Station(
        "store", "pretrain/checkpoint/", "boxes of logical fp32 tensors in hashed files, and a manifest, written last"
    ),
)
ARROWS = ("Stage", "Growth", "boxes, filled", "boxes, trained")
FLOORS = (
    Station(
        "families",
        "pretrain/families/",
        "what a model is: logical tensors, reference, layout, Megatron-core model, loss",
    ),
    Station("layout", "pretrain/layout/", "which boxes of logical tensors a rank holds, under TP x PP x DP and ZeRO"),
    Station("growth", "growth/", "the algebra: how every element of a grown model is made of old ones, for any box"),
)


def left_of(number: int) -> int:
    """Where a station begins."""
    return 8 + STEP * number


def text(x: float, y: float, what: str, style: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(what)}</text>'


def rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{style}"/>'


def tour() -> str:
    """From a YAML file to the store, and back to the next stage; below, the rooms that all of them stand on."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>From a YAML file over a stage, a growth event and the engine to the store, and back</title>",
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
        "<path d='M0 0L8 4L0 8z' fill='#555'/></marker></defs>",
        "<style>text{font-family:sans-serif;fill:#222}.title{font-size:17px;font-weight:bold}"
        ".room{font-size:12px;font-family:monospace;fill:#2a5a7a}.line{font-size:12px}.small{font-size:12px;fill:#555}"
        ".box{fill:#eef4f8;stroke:#2a5a7a}.floor{fill:#f6f1e7;stroke:#a98643}.sheet{fill:#fff}"
        "path.arrow{fill:none;stroke:#555;stroke-width:1.5;marker-end:url(#tip)}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" class="sheet"/>',
    ]
    for number, station in enumerate(STATIONS):
        left, middle = left_of(number), left_of(number) + WIDE / 2
        parts += [
            rectangle(left, TOP, WIDE, TALL, "box"),
            text(middle, TOP + 26, station.title, "title"),
            text(middle, TOP + 46, station.room, "room"),
            *(text(middle, TOP + 72 + 18 * i, line, "line") for i, line in enumerate(wrap(station.what, 23))),
        ]
    for number, label in enumerate(ARROWS):
        start, y = left_of(number) + WIDE, TOP + TALL / 2
        parts.append(f'<path class="arrow" d="M{start} {y:g}H{start + 35}"/>')
        parts.append(text(start + 18, TOP - 10, label, "small"))
    store, stage, bottom = left_of(4) + WIDE / 2, left_of(1) + WIDE / 2, TOP + TALL
    parts.append(f'<path class="arrow" d="M{store:g} {bottom}V{bottom + 34}H{stage:g}V{bottom + 2}"/>')
    back = "its own checkpoint, of a resume; its parent's, of a growth: each rank reads the boxes that it needs"
    parts.append(text((store + stage) / 2, bottom + 52, back, "small"))
    for number, (name, room, what) in enumerate(FLOORS):
        y = bottom + 78 + 54 * number
        parts += [
            rectangle(8, y, WIDTH - 16, 44, "floor"),
            text(24, y + 28, name, "title", "start"),
            text(120, y + 27, room, "room", "start"),
            text(290, y + 27, what, "line", "start"),
        ]
    return "\n".join([*parts, "</svg>", ""])


PICTURES = {"tour.svg": tour}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")

"""Draws and tabulates what models can do with fewer layers, from the answers of tools/prune.py --json.

Each ANSWER is a file. Answers for models of one name, that of the stage's folder, are a line (--layers, greedily) and a
point (--keep every-other). DIR gets pruned.png and pruned.md.

example:
  python configs/comparisons/pruned.py configs/comparisons/layer_drop runs/comparison-layer-drop/*.json
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pretrain.cli import command
from pretrain.report.files import writing
from pretrain.report.markdown import table
from pretrain.report.plot import COLOURS, STYLE


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("answers", metavar="ANSWER", type=Path, nargs="+")


def work(options: argparse.Namespace) -> command.Answer:
    """Writes both files."""
    losses: dict[str, dict[tuple[str, int], float]] = {}
    for path in options.answers:
        answer = json.loads(path.read_text())
        losses.setdefault(Path(answer["source"]).parents[1].name, {}).update(_losses(answer))
    _draw(losses, options.folder / "pruned.png")
    most = max(layers for by_size in losses.values() for _, layers in by_size)
    ways = [(name, how) for name, by_size in losses.items() for how in dict.fromkeys(how for how, _ in by_size)]
    rows = [
        [
            str(layers),
            *(f"{losses[name][how, layers]:.4f}" if (how, layers) in losses[name] else "" for name, how in ways),
        ]
        for layers in range(most, 0, -1)
    ]
    text = table(["layers left", *(f"{name}, {how}" for name, how in ways)], rows)
    with writing(options.folder / "pruned.md"):
        (options.folder / "pruned.md").write_text(f"{text}\n\nHeld-out loss in nats per token, on the same samples.\n")
    return command.Answer(
        text, {name: {f"{how} {n}": x for (how, n), x in by_size.items()} for name, by_size in losses.items()}
    )


def _losses(answer: dict[str, Any]) -> dict[tuple[str, int], float]:
    """By how layers were chosen and how many are left: the held-out loss."""
    how = "greedy" if answer["removed"] else "every other"
    whole = len(answer["kept"]) + len(answer["removed"])
    by_size = {("greedy", whole - n): each["held_out_loss"] for n, each in enumerate(answer["removed"], 1)}
    if answer["removed"]:
        by_size[how, whole] = answer["held_out_loss"]["whole"]
    return by_size | {(how, len(answer["kept"])): answer["held_out_loss"]["pruned"]}


def _draw(losses: dict[str, dict[tuple[str, int], float]], path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for colour, (name, by_size) in zip(COLOURS, losses.items(), strict=False):
            for how, style in (("greedy", "-o"), ("every other", "D")):
                points = sorted((n, loss) for (its, n), loss in by_size.items() if its == how)
                size = 4 if how == "greedy" else 8
                axes.plot(*zip(*points, strict=True), style, color=colour, label=f"{name}, {how}", markersize=size)
        axes.set_xlabel("layers left")
        axes.set_ylabel("held-out loss, nats per token")
        axes.legend(frameon=False)
        with writing(path):
            figure.savefig(path, dpi=85)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

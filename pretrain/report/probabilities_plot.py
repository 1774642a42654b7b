"""What each slot of a supernet is, with which probability, over the steps of a search."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pretrain.report.files import writing
from pretrain.report.plot import COLOURS, STYLE


def draw(
    steps: Sequence[int],
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    chosen: Sequence[str],
    rest: int,
    title: str,
    path: Path,
) -> None:
    """Draws probabilities [steps, slots, choices] and writes them as an image: a panel for each slot, the first at the
    top; a dotted line ends the rest. names: of the choices; chosen: one for each slot. Raises UserError when it cannot
    be written."""
    slots = probabilities.shape[1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.2 + 0.45 * slots), layout="constrained")
        panels = figure.subplots(slots, 1, sharex=True, squeeze=False)[:, 0]
        for slot, axes in enumerate(panels):
            axes.stackplot(steps, probabilities[:, slot].T, labels=names, colors=COLOURS[: len(names)], alpha=0.8)
            axes.set(ylim=(0, 1), yticks=[], xlim=(steps[0], steps[-1]))
            axes.axvline(rest, color="#222222", linewidth=0.8, linestyle=(0, (1, 3)))
            axes.set_ylabel(f"{slot + 1}  {chosen[slot]}", rotation=0, ha="right", va="center")
        panels[-1].set_xlabel("steps")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(names), frameon=False)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        with writing(path):
            figure.savefig(path, dpi=130)

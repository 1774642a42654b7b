"""Draws a run's loss and bits per byte over tokens, cumulative FLOPs and time, with the stages marked.

examples:
  python tools/plot.py runs/demo
  python tools/plot.py runs/demo --out curves.svg
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from pretrain.cli import command
from pretrain.cli.command import Answer
from pretrain.report import history, plot


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="image to write (default: RUN/plot.png)")


def work(options: argparse.Namespace) -> Answer:
    """Draws the run and says where; the data are the points."""
    out = options.out or options.run / "plot.png"
    stages = history.load(options.run)
    plot.draw(stages, options.run.resolve().name, out)
    return Answer(str(out), {"plot": str(out), "stages": plot.points(stages)})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

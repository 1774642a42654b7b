"""Draws a run's loss and bits per byte over tokens, cumulative FLOPs and time, with the stages marked.

examples:
  python tools/plot.py runs/demo
  python tools/plot.py runs/demo --out curves.svg
"""

import argparse
import json
import sys
from pathlib import Path

from pretrain import history, plot
from pretrain.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="image to write (default: RUN/plot.png)")
    parser.add_argument("--json", action="store_true", help="print the points as JSON as well")
    options = parser.parse_args(arguments)
    out = options.out or options.run / "plot.png"
    try:
        stages = history.load(options.run)
        plot.draw(stages, options.run.resolve().name, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"plot": str(out), "stages": plot.points(stages)}) if options.json else out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Records what the tests of this folder compare with, on this machine: losses, gradient norms and tensors.

example:
  python -m tests.golden.record                    tests/golden/losses.json, about a minute

Record again when a change is meant to change figures, or for other versions and another kind of processor; and say in
the commit why they changed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.golden import runs


def main() -> int:
    """The command line; gives the exit code."""
    argparse.ArgumentParser(
        prog="python -m tests.golden.record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.train_all(folder)
        stages = {f"{run}/{stage}": runs.written(folder / "runs" / run / stage) for run, stage in runs.every_stage()}
        found = {**runs.machine(), "corpora": runs.corpora(folder), "stages": stages}
    runs.LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    print(runs.LOSSES.relative_to(runs.ROOT), "is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

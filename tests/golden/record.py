"""Records what the tests of this folder compare with, on this machine: losses, gradient norms and tensors.

examples:
  python -m tests.golden.record                    everything, about two minutes
  python -m tests.golden.record losses             tests/golden/losses.json alone
  python -m tests.golden.record llama2 bert        what becomes of the earlier runs of tests/golden/earlier
  python -m tests.golden.record bert --anew        and makes that run itself anew, in today's format of checkpoints

Record again when a change is meant to change figures, or for other versions and another kind of processor; and say in
the commit why they changed. An earlier run is there to be older than the code: make it anew only if its format is one
that need not be read any more.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.golden import runs


def _losses() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs.train_all(folder)
        stages = {f"{run}/{stage}": runs.written(folder / "runs" / run / stage) for run, stage in runs.every_stage()}
        _write(runs.LOSSES, {"corpora": runs.corpora(folder), "stages": stages})


def _earlier(family: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        _write(runs.EARLIER / family / runs.EXPECTED, {"stages": runs.go_on(family, Path(name) / family)})


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**runs.machine(), **found}, indent=1) + "\n")
    print(path.relative_to(runs.ROOT), "is written")


def main() -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden.record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("losses", *runs.FAMILIES)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; none: all")
    parser.add_argument("--anew", action="store_true", help="make the earlier runs that are named anew")
    options = parser.parse_args()
    chosen = [part for part in parts if part in options.parts or not options.parts]
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no {', '.join(sorted(unknown))}: the parts are {', '.join(parts)}")
    if options.anew and not options.parts:
        parser.error("--anew replaces checkpoints: name the runs")
    for part in chosen:
        if part == "losses":
            _losses()
            continue
        if options.anew:
            runs.make_earlier(part)
        _earlier(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())

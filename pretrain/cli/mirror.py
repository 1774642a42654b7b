"""Sends what is missing of stages to their mirrors (checkpoint.mirror), or brings a stage back.

A stage does both by itself: in a process beside training after each checkpoint, and where it starts on a machine that
has nothing of it.

examples:
  python -m pretrain.cli.mirror runs/demo/wide
  python -m pretrain.cli.mirror --back configs/demo.yaml --stage wide
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from pretrain import config
from pretrain.checkpoint import mirror
from pretrain.cli import command
from pretrain.config import reading, stage_from
from pretrain.errors import UserError
from pretrain.stage import mirrored


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", type=Path, metavar="FOLDER", help="of a stage; with --back, the curriculum's YAML file"
    )
    parser.add_argument(
        "--back", action="store_true", help="bring back a stage, and what it grows from, if it is not here"
    )
    parser.add_argument("--stage", help="with --back, its name")
    parser.add_argument("--mirror", metavar="URL", help="in place of checkpoint.mirror in the folder's config.yaml")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a stage without a mirror, and one that cannot be used."""
    if options.back != bool(options.stage):
        raise UserError("--back needs --stage, and --stage needs --back")
    if options.back:
        curriculum = config.load(options.place)
        mirrored.bring_back(curriculum, curriculum.stage(options.stage))
        return command.Answer("", {})
    path = options.place / "config.yaml"
    if not path.is_file():
        raise UserError(f"{options.place} is not the folder of a stage (it has no config.yaml)")
    stage = stage_from(reading.parse(path.read_text(encoding="utf-8")), str(path))
    keep = stage.checkpoint
    if not (base := options.mirror or keep.mirror):
        raise UserError(f"{path}: checkpoint.mirror is empty, so there is no mirror; name one with --mirror")
    url = mirrored.url_of(base, options.place)
    mirror.send(options.place, url, keep.keep, keep.keep_every)
    return command.Answer(f"all of {options.place} is at {url}", {"url": url})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

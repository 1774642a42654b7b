"""Writes a checkpoint as a folder that Megatron-LM loads (torch_dist), with the state of its optimizer.

The folder goes on under any tensor, pipeline and data parallel layout there. Load it with --load FOLDER, --ckpt-format
torch_dist, --no-load-rng and --override-opt_param-scheduler (schedules there are of that run), or with --finetune. The
vocabulary is put back into the order of the tokenizer that it was made with, whose files are in FOLDER/tokenizer.
Several generations become one: their moments are scaled so that Adam's bias correction gives what their own steps gave.

examples:
  python tools/export_megatron.py runs/demo exports/megatron
  python tools/import_megatron.py exports/megatron runs/again/base --tokenizer exports/megatron/tokenizer
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.megatron_lm.export import export_megatron


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint, a stage (its newest), or a run (its last finished stage's newest)"
    )
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder or model, where the corpus of the run is not at its place"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.megatron_lm.export does."""
    exported = export_megatron(
        locate(options.checkpoint, finished=True),
        options.folder,
        tokenizer=options.tokenizer,
        progress=sys.stderr.isatty(),
    )
    what = f"with the moments of {exported.step} steps" if exported.moments else "without moments"
    text = (
        f"{exported.folder}: {exported.parameters:,} parameters of {exported.checkpoint} {what}, as iteration "
        f"{exported.iteration}, {exported.bytes:,} bytes"
    )
    return command.Answer(
        text, {**asdict(exported), "checkpoint": str(exported.checkpoint), "folder": str(exported.folder)}
    )


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

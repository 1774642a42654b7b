"""Imports a model in Hugging Face's format, so that it can be grown: it becomes the finished first stage of a run.

STAGE is a folder runs/NAME/STAGE; name that stage first in the curriculum, with the model's own shape, and the next
stage grows from it. There are no moments in such a folder: training starts with fresh ones. A SentencePiece BPE
vocabulary is put into the order in which it can grow; any other comes in as it is, and grows by tokens that are added
to its tokenizer alone (tools/prepare_data.py --add-tokens). Weights are read from safetensors alone, a piece at a
time. An import that was stopped goes on when it is started again.

examples:
  python tools/import_hf.py models/Llama-2-7b-hf runs/llama/base
  python tools/export_hf.py runs/llama/base exports/base --dtype fp16
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pretrain.checkpoint.find import step_of
from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.hf.imports import import_model


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", type=Path, help="config.json, *.safetensors, tokenizer files")
    parser.add_argument("stage", metavar="STAGE", type=Path, help="folder of the stage to make, runs/NAME/STAGE")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.hf.imports does."""
    if step_of(options.stage) is not None:
        raise UserError(f"{options.stage}: name the folder of a stage (runs/NAME/STAGE), not of a checkpoint")
    imported = import_model(options.source, options.stage, progress=sys.stderr.isatty())
    vocabulary = imported.vocabulary
    text = (
        f"{imported.checkpoint}{' is there already' if imported.existed else ''}: {imported.parameters:,} parameters, "
        f"{imported.bytes:,} bytes; the vocabulary is in {vocabulary['order']} order"
    )
    if vocabulary["reason"]:
        text += f" and cannot grow: {vocabulary['reason']}"
    return command.Answer(text, {**asdict(imported), "checkpoint": str(imported.checkpoint)})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

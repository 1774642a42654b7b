"""Writes a model as a folder that Hugging Face transformers loads: weights, config, tokenizer and model card.

The vocabulary is put back into the order of the tokenizer that it was made with. An export that was stopped goes on
where it was when it is started again.

examples:
  python tools/export_hf.py runs/demo runs/demo/export
  python tools/export_hf.py runs/demo/wide/checkpoints/step-00000200 exports/wide --dtype bf16
"""

import argparse
import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.files import DTYPES


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint, a stage (its newest), or a run (its last finished stage's newest)"
    )
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--shard-size",
        default="4GB",
        metavar="SIZE",
        help="largest file of weights, such as 500MB (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder or model, where the corpus of the run is not at its place"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.hf.export does."""
    exported = export(
        locate(options.checkpoint, finished=True),
        options.folder,
        dtype=options.dtype,
        shard_bytes=bytes_of(options.shard_size),
        tokenizer=options.tokenizer,
        progress=sys.stderr.isatty(),
    )
    size = sum(exported.files.values())
    text = (
        f"{exported.folder}{' is there already' if exported.existed else ''}: {exported.parameters:,} parameters in "
        f"{exported.dtype} of {exported.checkpoint}, {len(exported.files)} files, {size:,} bytes"
    )
    data = {**asdict(exported), "checkpoint": str(exported.checkpoint), "folder": str(exported.folder)}
    return command.Answer(text, data)


def bytes_of(text: str) -> int:
    """Bytes of a size such as 500MB or 4GB (decimal, as transformers counts). Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise UserError(f"--shard-size {text}: write it like 500MB or 4GB")
    return int(match[1]) * {"K": 10**3, "M": 10**6, "G": 10**9}[match[2][0].upper()]


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

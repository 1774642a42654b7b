"""Writes a model as a folder that Hugging Face transformers loads: weights, config, tokenizer and model card.

Low-rank adapters become a part of their matrices; with --adapter they are a folder of their own, for peft.
The vocabulary is put back into the order of the tokenizer that it was made with. An export that was stopped goes on
where it was when it is started again. Layers that are shared are written out; a model with an order of sublayers, or
whose heads have spans, goes with its code, for from_pretrained(..., trust_remote_code=True).

examples:
  python tools/export_hf.py runs/demo runs/demo/export
  python tools/export_hf.py runs/demo/wide/checkpoints/step-00000200 exports/wide --dtype bf16
  python tools/export_hf.py runs/demo exports/averaged --average
  python tools/export_hf.py s3://bucket/runs/demo s3://bucket/exports/demo
  python tools/export_hf.py runs/tuned exports/base --adapter exports/adapter
"""

import argparse
import re
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.data.corpus.remote import check_free, publish
from pretrain.errors import UserError
from pretrain.hf.adapter import export_adapter
from pretrain.hf.export import export
from pretrain.hf.files import DTYPES
from pretrain.runtime.storage import cache, url_of


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="a checkpoint, a stage (its newest), or a run (its last finished stage's newest), here or at a URL",
    )
    parser.add_argument("folder", type=Path, help="folder to make, or a URL for it (blocks.json there comes last)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--shard-size",
        default="4GB",
        metavar="SIZE",
        help="largest file of weights, such as 500MB (default: %(default)s)",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        help="of a stage that trains low-rank adapters: write them to this folder, and the model without them",
    )
    parser.add_argument(
        "--average", action="store_true", help="the average of the weights that train.average keeps, in their place"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer folder or model, where the corpus of the run is not at its place"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.hf.export and pretrain.hf.adapter do."""
    url = url_of(options.folder)
    if url:
        check_free(url)
    folder = cache("exports", url) if url else options.folder
    checkpoint = locate(options.checkpoint, finished=True)
    if options.adapter and options.average:
        raise UserError("--average: adapters are exported as they are; leave out --adapter, or --average")
    if options.adapter:
        export_adapter(checkpoint, options.adapter, dtype=options.dtype, base=url or str(folder))
    exported = export(
        checkpoint,
        folder,
        dtype=options.dtype,
        shard_bytes=bytes_of(options.shard_size),
        tokenizer=options.tokenizer,
        merged=not options.adapter,
        average=options.average,
        progress=sys.stderr.isatty(),
    )
    size = sum(exported.files.values())
    if url:
        publish(folder, url)
        shutil.rmtree(folder)
    text = (
        f"{url or folder}{' is there already' if exported.existed else ''}: {exported.parameters:,} parameters in "
        f"{exported.dtype} of {exported.checkpoint}, {len(exported.files)} files, {size:,} bytes"
    )
    if options.adapter:
        text += f"\n{options.adapter}: its adapters, for peft"
    data = {**asdict(exported), "checkpoint": str(exported.checkpoint), "folder": url or str(folder)}
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

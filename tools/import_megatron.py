"""Imports a checkpoint of Megatron-LM or DeepSpeed with the state of its optimizer, so that its run can be grown.

FOLDER is what Megatron-LM calls --save (its newest checkpoint is taken), or one checkpoint in it: as torch_dist, or as
the older format with a file for each rank (mp_rank_00/model_optim_rng.pt); or of DeepSpeed's ZeRO, stages 1 and 2
(zero_pp_rank_0_mp_rank_00_optim_states.pt).
STAGE is a folder runs/NAME/STAGE; name that stage first in the curriculum, with the model's own shape, and the next
stage grows from it, with its moments. The pickles in such a folder are read as data, and nothing that they name is
run: one that asks for anything but tensors and plain data is refused. Tensors are read a piece at a time. An import
that was stopped goes on when it is started again.

examples:
  python tools/import_megatron.py checkpoints/gpt runs/gpt/base --tokenizer models/Llama-2-7b-hf
  python tools/import_megatron.py checkpoints/gpt/iter_0005000 runs/gpt/base --weights-only
  python tools/import_megatron.py checkpoints/zero runs/zero/base --args model.json
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pretrain.checkpoint.find import step_of
from pretrain.cli import command
from pretrain.errors import UserError
from pretrain.megatron_lm.imports import Imported, import_megatron
from pretrain.runtime import documents


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FOLDER", type=Path, help="the folder of the checkpoint")
    parser.add_argument("stage", metavar="STAGE", type=Path, help="folder of the stage to make, runs/NAME/STAGE")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="the files of its tokenizer, which text is prepared with"
    )
    parser.add_argument(
        "--vocab",
        type=command.positive,
        metavar="N",
        help="keep the first N rows of the vocabulary; by default all of them, padding too, since Megatron-LM's loss "
        "counts padding",
    )
    parser.add_argument("--weights-only", action="store_true", help="leave Adam's moments behind")
    parser.add_argument(
        "--args",
        type=Path,
        metavar="FILE.json",
        help="arguments of the model in Megatron-LM's words, where the checkpoint has none, or other ones",
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError as pretrain.megatron_lm.imports does."""
    if step_of(options.stage) is not None:
        raise UserError(f"{options.stage}: name the folder of a stage (runs/NAME/STAGE), not of a checkpoint")
    imported = import_megatron(
        options.source,
        options.stage,
        args=documents.read(options.args, documents.Object) if options.args else None,
        tokenizer=options.tokenizer,
        vocab=options.vocab,
        moments=not options.weights_only,
        progress=sys.stderr.isatty(),
    )
    return command.Answer(_in_words(imported), {**asdict(imported), "checkpoint": str(imported.checkpoint)})


def _in_words(imported: Imported) -> str:
    what = f"with the moments of {imported.step} steps" if imported.moments else "without moments"
    lines = [
        f"{imported.checkpoint}{' is there already' if imported.existed else ''}: {imported.parameters:,} parameters "
        f"of iteration {imported.iteration} ({imported.format}) {what}, {imported.bytes:,} bytes"
    ]
    if imported.optimizer:
        constants = ", ".join(f"{key} {value}" for key, value in sorted(imported.optimizer.items()))
        lines.append(f"its optimizer had {constants}: to go on as it did, give the stage the same (train.{{...}})")
    if imported.vocabulary["reason"]:
        lines.append(f"the vocabulary is as it was and cannot grow: {imported.vocabulary['reason']}")
    return "\n".join(lines)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

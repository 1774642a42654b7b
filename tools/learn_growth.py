"""Learns how to grow a checkpoint into a stage: the factors of LiGO (Wang et al., 2023), on text of the stage's corpus.

New weights are linear maps of the old ones: A W B, and sums over layers. A few hundred steps on these factors alone
start from copies and make the best of them. Layers, hidden, heads and ffn are learned where they grow, or those that
--only names; the rest grows as the stage says. It is done in one process, with a reference model in plain PyTorch. OUT
is a safetensors file that the stage's `grow` can name, on any layout of ranks; the lines to put there are printed. The
text is the training text of the stage from its beginning, and the stage will see it all the same. Stopped and started
again, it goes on from the last ten steps that were done. `grow: {learn: {steps: 200}}` in a curriculum does the same at
the start of the stage.

examples:
  python tools/learn_growth.py runs/demo/seed factors/wide.safetensors --config configs/demo.yaml --stage wide
  python tools/learn_growth.py runs/demo/wide deep.safetensors --config my.yaml --stage deep --only layers --steps 300
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from growth.describe import table
from pretrain.checkpoint import Reader
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import LEARNED, Learn, factor_files, load
from pretrain.errors import UserError
from pretrain.event.learn import Learning
from pretrain.runtime.files import Lock, make_folder


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a checkpoint, a stage or a run (its last finished stage)"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the file of factors to write")
    parser.add_argument("--config", type=Path, required=True, help="the curriculum, a YAML file")
    parser.add_argument("--stage", required=True, help="name of the stage to grow into")
    parser.add_argument(
        "--only", nargs="+", choices=list(LEARNED), help="what to learn (default: all of it that grows)"
    )
    parser.add_argument(
        "--steps", type=command.positive, default=200, help="steps of Adam on the factors (default: %(default)s)"
    )
    parser.add_argument("--batch", type=command.positive, default=8, help="samples of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of the factors (default: %(default)s)")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError and GrowthError for what cannot be learned; nothing is written then."""
    target = options.target
    if target.exists():
        raise UserError(f"{target} is there already: remove it, or choose another name")
    curriculum = load(options.config)
    stage = curriculum.stage(options.stage)
    how = Learn(steps=options.steps, batch=options.batch, lr=options.lr, only=tuple(options.only or ()))
    with Reader(locate(options.source, finished=True)) as reader:
        learning = Learning(curriculum, stage, reader, target, how)
        make_folder(target.absolute().parent)
        with Lock(target.with_name(f".{target.name}.lock")):
            if target.exists():  # another process was first
                raise UserError(f"{target} is there already: remove it, or choose another name")
            done = learning.resume()
            with tqdm(total=how.steps, initial=done, desc="factors", disable=not sys.stderr.isatty()) as bar:
                while not learning.done:
                    bar.set_postfix(loss=f"{learning.step():.4f}")
                    bar.update()
            learned = learning.finish()
            learning.progress.unlink(missing_ok=True)
    rows = [["", "held-out loss"], *([name, f"{value:.4f}"] for name, value in learned.held_out.items())]
    lines = [f"  {key}: {{operator: dense, {factor_files.OPTION}: {target}}}" for key in learned.policy]
    text = "\n".join([str(target), table(rows), f"in stage {stage.name!r} of {options.config}:", "grow:", *lines])
    if not learned.held_out["learned"] < learned.held_out["start"]:
        text += "\nNothing was gained over copies: try more steps, a larger --batch or a smaller --lr."
    data = {"grow": learned.policy, "losses": learned.losses, "held_out": learned.held_out, "flops": learned.flops}
    return command.Answer(text, {"target": str(target), **data})


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

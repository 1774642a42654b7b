"""Learns how to grow a checkpoint into a stage: the factors of LiGO (Wang et al., 2023), on text of the stage's corpus.

New weights are linear maps of the old ones: A W B, and sums over layers. A few hundred steps on these factors alone
start from copies and make the best of them. Layers, hidden, heads and ffn are learned where they grow, or those that
--only names; the rest grows as the stage says. It is done in one process, with a reference model in plain PyTorch. OUT
is a safetensors file that the stage's `grow` can name, on any layout of ranks; the lines to put there are printed. The
text is the training text of the stage from its beginning, and the stage will see it all the same. Stopped and started
again, it goes on from the last ten steps that were done.

examples:
  python tools/learn_growth.py runs/demo/seed factors/wide.safetensors --config configs/demo.yaml --stage wide
  python tools/learn_growth.py runs/demo/wide deep.safetensors --config my.yaml --stage deep --only layers --steps 300
"""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from growth import Architecture, Box, Plan, between
from growth.describe import table
from growth.evaluate.box_values import Read
from growth.learn import Learner
from pretrain.checkpoint import Reader
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import Stage, factor_files, load
from pretrain.errors import UserError
from pretrain.event.plan import plan_of
from pretrain.families.common.text import Feed
from pretrain.families.reference import objective
from pretrain.families.text import open_feed
from pretrain.runtime import progress_files
from pretrain.runtime.files import Lock, make_folder
from pretrain.verify import audit

KEPT = 10  # the state is written every so many steps
LEARNED = {"layers": ("layers",), "hidden": ("hidden",), "heads": ("heads", "kv_heads"), "ffn": ("ffn",)}


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
    if options.target.exists():
        raise UserError(f"{options.target} is there already: remove it, or choose another name")
    curriculum = load(options.config)
    stage = curriculum.stage(options.stage)
    with Reader(locate(options.source, finished=True)) as reader:
        old = Architecture.from_json(reader.manifest.architecture)
        target = stage.model.architecture()
        keys = [k for k in options.only or LEARNED if any(old.sizes.get(a) != target.sizes.get(a) for a in LEARNED[k])]
        if not keys:
            raise UserError(
                f"stage {stage.name!r} grows nothing that is learned ({', '.join(options.only or LEARNED)})"
            )
        reduced = _reduced(stage, old, keys)
        feed = open_feed(reduced)
        feed.seek(None)
        first = plan_of(curriculum, reduced, reader.manifest, feed.tokenizer)
        new = first.new.replace(
            {axis: target.sizes[axis] for key in keys for axis in LEARNED[key] if axis in target.sizes}
        )
        if (need := audit.needed(new)) > (free := audit.free_memory()):
            raise UserError(
                f"learning needs about {need / 1e9:.3g} GB of memory and {free / 1e9:.3g} GB are free: take a larger "
                "machine"
            )
        held_out = feed.batch(options.batch)
        read = partial(_through, first, reader.read)
        learner = Learner(read, first.new, new, lr=options.lr)
        copies = learner.policy()
        about = {"parent": reader.manifest.hash, "stage": stage.name, "lr": str(options.lr)}
        learns = {**about, "config": stage.to_dict(), "keys": keys, "batch": options.batch}
        make_folder(options.target.absolute().parent)
        with Lock(options.target.with_name(f".{options.target.name}.lock")):
            if options.target.exists():  # another process was first
                raise UserError(f"{options.target} is there already: remove it, or choose another name")
            losses = _learn(learner, new, feed, options, learns)
            learned = learner.policy()
            factor_files.write(options.target, learned, {**about, "steps": str(learner.steps)})
            _progress(options.target).unlink(missing_ok=True)
        policy = {key: {"operator": "dense", factor_files.OPTION: str(options.target)} for key in learned}
        measured = {
            "start": _loss(copies, read, first.new, new, held_out),
            "learned": _loss(factor_files.filled(policy), read, first.new, new, held_out),
        }
    rows = [["", "held-out loss"], *([name, f"{value:.4f}"] for name, value in measured.items())]
    lines = [f"  {key}: {{operator: dense, {factor_files.OPTION}: {options.target}}}" for key in policy]
    text = "\n".join(
        [str(options.target), table(rows), f"in stage {stage.name!r} of {options.config}:", "grow:", *lines]
    )
    if not measured["learned"] < measured["start"]:
        text += "\nNothing was gained over copies: try more steps, a larger --batch or a smaller --lr."
    return command.Answer(text, {"target": str(options.target), "grow": policy, "losses": losses, "held_out": measured})


def _learn(
    learner: Learner, new: Architecture, feed: Feed, options: argparse.Namespace, learns: Mapping[str, Any]
) -> list[float]:
    """Learns the factors and returns the losses of all steps.

    It goes on after the steps of an earlier run that learned the same, as `learns` says.
    """
    path, losses = _progress(options.target), list[float]()
    progress = progress_files.read(path)
    if progress and progress[1]["learns"] == learns and len(progress[1]["losses"]) <= options.steps:
        state, about = progress
        learner.restore(state)
        feed.seek(about["cursor"])
        losses = about["losses"]
    with tqdm(total=options.steps, initial=learner.steps, desc="factors", disable=not sys.stderr.isatty()) as bar:
        while learner.steps < options.steps:
            samples = feed.take(options.batch, 0.0, 0, 1).samples
            losses.append(learner.step(partial(objective, arch=new, samples=samples)))
            if not math.isfinite(losses[-1]):
                path.unlink(missing_ok=True)
                raise UserError(f"the loss is {losses[-1]} at step {learner.steps}: take a smaller --lr")
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            bar.update()
            if learner.steps % KEPT == 0:
                about = {"learns": learns, "cursor": feed.cursor, "losses": losses}
                progress_files.write(path, learner.state(), about)
    return losses


def _progress(target: Path) -> Path:
    """The file with the learner's state until the factors are written."""
    return target.with_name(f".{target.name}.progress")


def _reduced(stage: Stage, old: Architecture, keys: list[str]) -> Stage:
    """The stage with what is learned left as it is in the old model, so that the rest grows first."""
    sizes: dict[str, Any] = {axis: old.sizes[axis] for key in keys for axis in LEARNED[key] if axis in old.sizes}
    if "kv_heads" not in old.sizes:
        sizes |= {"kv_heads": old.sizes["heads"]} if "heads" in keys else {}
    default = type(stage.grow)()
    grow = replace(stage.grow, **{key: getattr(default, key) for key in keys})
    return replace(stage, model=replace(stage.model, **sizes), grow=grow)


def _through(plan: Plan, read: Read, kind: str, name: str, box: Box) -> torch.Tensor:
    return plan.evaluate(name, box, read, kind)


def _loss(policy: dict[str, Any], read: Read, old: Architecture, new: Architecture, samples: Any) -> float:
    """The loss of the model that the plan of this policy makes."""
    plan = between(old, new, policy, seed=0, init_std=0.0)
    weights = {name: _through(plan, read, "weight", name, Box.whole(t.shape)) for name, t in new.tensors().items()}
    with torch.no_grad():
        return float(objective(lambda kind, name, box: weights[name][box.slices()], plan.new, samples))


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

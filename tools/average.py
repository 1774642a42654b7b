"""Averages checkpoints: the mean or a moving average of several of one stage, or a model before and after it has grown.

A stage stands for its checkpoints, the oldest first. With --between, the first is a parent, and the second a checkpoint
of the stage that grew from it: (1 - T) x parent, mapped by the plan of the growth event into the same shape, + T x the
second. The result is a checkpoint that every other tool takes, with the weights' average in fp32 and everything else,
Adam's moments too, of the last checkpoint. The held-out loss of each and of the average is printed: an average of
models that are far from each other is worse than any of them.

examples:
  python tools/average.py runs/demo/wide --last 3 --output averaged/wide
  python tools/average.py runs/demo/wide --ema 0.9 --output averaged/wide
  python tools/average.py runs/demo/seed runs/demo/wide --between 0.8 --output averaged/wide
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from growth import Architecture, Box, Plan, identity
from growth.describe import table
from growth.evaluate.box_values import Read
from pretrain.checkpoint import KINDS, Manifest, Reader, check, model_of, write_checkpoint
from pretrain.checkpoint.find import step_of, steps
from pretrain.checkpoint.locate import locate
from pretrain.checkpoint.manifest import plain
from pretrain.cli import command
from pretrain.config import stage_from
from pretrain.errors import UserError
from pretrain.state import State
from pretrain.verify import audit
from pretrain.verify.pruning import held_out_loss


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", metavar="SRC", type=Path, nargs="+", help="checkpoints, or stages for all of theirs")
    parser.add_argument("--output", metavar="DST", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--last", type=command.positive, metavar="N", help="only so many, the last ones")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ema", type=_share, metavar="DECAY", help="what a step leaves of the average so far (default: mean)"
    )
    how.add_argument(
        "--between", type=_share, metavar="T", help="of two: the share of the second, which grew from the first"
    )
    parser.add_argument("--corpus", type=Path, help="text to measure on (default: the corpus of the stage)")
    parser.add_argument(
        "--samples", type=command.positive, default=32, help="of held-out text to measure on (default: %(default)s)"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number from 0 to 1")
    return value


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for checkpoints that cannot be averaged, and where there is something else in DST already."""
    paths = _paths(options)
    target: Path = options.output
    with ExitStack() as opened:
        readers = [opened.enter_context(Reader(path)) for path in paths]
        last = readers[-1]
        if step_of(target) not in (None, last.manifest.step):
            raise UserError(f"{target}: the average is of step {last.manifest.step}: name it so, or otherwise")
        arch, reads = _alike(readers, options.between is not None)
        shares = _shares(len(reads), options)
        if not last.manifest.config:
            raise UserError(f"{last.path} is an import, and of no stage: there is no text to measure on")
        stage = stage_from(last.manifest.config, str(last.path))
        if (feed := audit.open_corpus(stage, options.corpus)) is None:
            folders = options.corpus or ", ".join(stage.data.folders)
            raise UserError(f"{folders}: there is no corpus to measure on: name one (--corpus)")

        def average(kind: str, name: str, box: Box) -> torch.Tensor:
            if kind != "weight":
                return last.read(kind, name, box)
            parts = (share * read(kind, name, box).double() for share, read in zip(shares, reads, strict=True))
            return sum(parts, torch.zeros(box.shape, dtype=torch.float64)).float()

        state = State.from_reader(last)
        averaged = {"rule": _rule(options), "of": [reader.manifest.hash for reader in readers]}
        event = {"stage": stage.name, "plan": identity(arch).to_json(), "certificate": None, "averaged": averaged}
        manifest = _written(target, event)
        existed = manifest is not None
        if manifest is None:
            state = replace(state, events=(*state.events, event))
            fields = state.fields(stage.name, last.manifest.config, [birth.adam_step for birth in state.births])
            kinds = [kind for kind in KINDS if last.has(kind)]
            bars = sys.stderr.isatty()
            manifest = write_checkpoint(target, last.manifest.step, kinds, average, fields, event, progress=bars)
        samples = feed.batch(options.samples)
        losses = [held_out_loss(read, arch, samples) for read in reads]
        after = held_out_loss(average, arch, samples)
    rows = [["", "share", "held-out loss"]]
    rows += [
        [str(path), f"{share:.4f}", f"{loss:.4f}"] for path, share, loss in zip(paths, shares, losses, strict=True)
    ]
    rows.append([f"{target}{' (is there already)' if existed else ''}", "", f"{after:.4f}"])
    data = {"target": str(target), "hash": manifest.hash, "existed": existed, **averaged, "shares": shares}
    held_out = {"before": losses, "after": after}
    return command.Answer(table(rows), {**data, "held_out_loss": held_out})


def _paths(options: argparse.Namespace) -> list[Path]:
    """The checkpoints that are meant, the oldest first."""
    if options.between is not None:
        paths = [locate(source, finished=True) for source in options.sources]
        if len(paths) != 2 or options.last:
            raise UserError("--between is of two: a parent, and a checkpoint of the stage that grew from it")
        return paths
    found = []
    for source in options.sources:
        own = list(reversed(steps(source / "checkpoints")))
        found += own or [locate(source)]
    found = found[-options.last :] if options.last else found
    for path in found:
        model_of(check(path), path)
    if len(found) < 2:
        raise UserError(
            f"{', '.join(map(str, options.sources))}: there is one checkpoint, and an average is of several"
        )
    return found


def _alike(readers: Sequence[Reader], grown: bool) -> tuple[Architecture, list[Read]]:
    """The shape of the last model, and what reads each in this shape. Raises UserError for one that has another."""
    *earlier, last = readers
    arch = model_of(last.manifest, last.path)
    reads: list[Read] = []
    for reader in earlier:
        own = model_of(reader.manifest, reader.path)
        if grown:
            plan = _plan(reader, own, last, arch)
            reads.append(partial(_mapped, plan, reader.read))
        elif own == arch:
            reads.append(reader.read)
        else:
            raise UserError(
                f"{reader.path} has another shape than {last.path}: for a model before and after growth use --between"
            )
    return arch, [*reads, last.read]


def _mapped(plan: Plan, read: Read, kind: str, name: str, box: Box) -> torch.Tensor:
    return plan.evaluate(name, box, read, kind)


def _plan(reader: Reader, own: Architecture, last: Reader, arch: Architecture) -> Plan:
    """The plan of the growth event that led from one checkpoint's model to the other's."""
    events = [event for event in reversed(last.manifest.events) if "averaged" not in event and "plan" in event]
    plan = Plan.from_json(events[0]["plan"]) if events else None
    if plan is None or plan.old != own or plan.new != arch:
        raise UserError(
            f"{last.path} has not grown from the model of {reader.path}: its last growth event had another one"
        )
    return plan


def _shares(count: int, options: argparse.Namespace) -> list[float]:
    """What each model counts, in order; they sum to 1."""
    if options.between is not None:
        return [1 - options.between, options.between]
    if options.ema is None:
        return [1 / count] * count
    shares: list[float] = []
    for number in range(count):
        shares = [*(share * options.ema for share in shares), 1 - options.ema if number else 1.0]
    return shares


def _rule(options: argparse.Namespace) -> str:
    if options.between is not None:
        return f"between {options.between:g}"
    return "mean" if options.ema is None else f"ema {options.ema:g}"


def _written(target: Path, event: dict[str, Any]) -> Manifest | None:
    """The manifest of this very average, if it is there; UserError for something else."""
    if not (target / "manifest.json").exists():
        return None
    manifest = check(target)
    if manifest.events and plain(manifest.events[-1]) == plain(event):
        return manifest
    raise UserError(f"{target} is there already and is something else: remove it, or choose another name")


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

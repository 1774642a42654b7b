"""Takes layers away from a checkpoint, offline: what LayerDrop (train.layer_drop) prepares a model for.

It writes a checkpoint of the layers that are kept, with their weights, their moments and a certificate that says how
far the model is from the whole one; `tools/export_hf.py` exports it. Every other layer is hard to beat (Fan et al.
2019, section 4.2). With --layers those are taken away, one after the other, without which the loss on held-out text is
smallest. DST is by default a folder pruned-N in that of the stage. It can be stopped, and goes on when it is started
again.

examples:
  python tools/prune.py runs/bert-layerdrop --keep every-other
  python tools/prune.py runs/bert-layerdrop/long /scratch/three --keep 0,5,11
  python tools/prune.py runs/bert-layerdrop --layers 8
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from growth import Architecture, Plan
from growth.certificate import Certificate
from growth.describe import table
from growth.evaluate.box_values import Read
from pretrain.checkpoint import Manifest, Reader, model_of
from pretrain.checkpoint.find import step_of
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import Grow, Stage, stage_from
from pretrain.config.orders import in_words
from pretrain.errors import UserError
from pretrain.event.offline import write, written
from pretrain.families.common.text import Feed
from pretrain.verify import audit, pruning

EVERY_OTHER = "every-other"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a checkpoint, a stage or a run (its last finished stage)"
    )
    parser.add_argument("target", metavar="DST", type=Path, nargs="?", help="folder of the new checkpoint")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", metavar="LAYERS", help=f"{EVERY_OTHER}, or numbers from 0 on such as 0,2,5")
    which.add_argument("--layers", type=command.positive, metavar="N", help="how many to keep, chosen by held-out loss")
    parser.add_argument("--corpus", type=Path, help="text to measure on (default: the corpus of the stage)")
    parser.add_argument(
        "--samples", type=command.positive, default=32, help="of held-out text to measure on (default: %(default)s)"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for layers that there are not, and as `pretrain.event.offline` does; nothing is written then."""
    began, bars = time.monotonic(), sys.stderr.isatty()
    source = locate(options.source, finished=True)
    with Reader(source) as reader:
        arch = model_of(reader.manifest, source)
        named = [] if options.keep is None else _named(options.keep, arch)
        count = len(named) or options.layers
        if count >= arch.layers:
            raise UserError(f"{source} has {arch.layers} layers, and {count} are to be kept: keep fewer")
        target = options.target or _beside(source, count)
        if step_of(target) not in (None, 0):
            raise UserError(
                f"{target}: a pruned checkpoint is step 0 of its stage: name it step-00000000, or otherwise"
            )
        stage, feed = _text(reader, options.corpus)
        samples = feed.batch(options.samples)
        notes = target.absolute().with_name(f".{target.name}.chosen.json")
        removed = []
        if not named:
            about = {"source": reader.manifest.hash, "corpus": feed.source, "samples": options.samples}
            removed = pruning.greedy(reader.read, arch, count, samples, notes, about, bars)
            named = [layer for layer in range(arch.layers) if layer not in dict(removed)]
        plan = pruning.plan_of(arch, named)
        left = _stage_of(stage, plan.new)
        manifest = written(target, reader.manifest, plan, left)
        existed = manifest is not None
        if manifest is None:
            certificate = audit.certificate(plan, reader.read, audit.text(plan, stage, feed), stage.train.lr)
            certificate.require()
            manifest = write(reader, target, plan, left, certificate, began, progress=bars)
        notes.unlink(missing_ok=True)
        losses = [pruning.held_out_loss(read, of, samples) for read, of in _models(reader.read, plan)]
    return _answer(source, target, existed, manifest, named, removed, losses)


def _text(reader: Reader, corpus: Path | None) -> tuple[Stage, Feed]:
    """The stage that the checkpoint is of, and its text."""
    if not reader.manifest.config:
        raise UserError(f"{reader.path} is an import, and of no stage: let it grow into one first")
    stage = stage_from(reader.manifest.config, str(reader.path))
    if (feed := audit.open_corpus(stage, corpus)) is None:
        raise UserError(
            f"{corpus or ', '.join(stage.data.folders)}: there is no corpus to measure on: name one with --corpus"
        )
    return stage, feed


def _stage_of(stage: Stage, arch: Architecture) -> Stage:
    """The stage with the model that is left of it."""
    blocks: dict[str, Any] = {"layers": arch.depth}
    if stage.model.order is not None:
        blocks = {"layers": 0, "order": in_words(arch)}
    parallel, model = replace(stage.parallel, pipeline=None), replace(stage.model, **blocks)
    return replace(stage, model=model, parallel=parallel, patches=(), grow=Grow())


def _models(whole: Read, plan: Plan) -> tuple[tuple[Read, Architecture], tuple[Read, Architecture]]:
    """The whole model and what is left of it, each as what reads it and its architecture."""
    assert plan.old is not None
    return (whole, plan.old), (lambda kind, name, box: plan.evaluate(name, box, whole, kind), plan.new)


def _named(text: str, arch: Architecture) -> list[int]:
    """The layers that --keep names, in order."""
    if text == EVERY_OTHER:
        return pruning.every_other(arch)
    words = text.split(",")
    if not all(word.isascii() and word.strip().isdigit() and len(word) < 10 for word in words):
        raise UserError(f"--keep {text!r}: give {EVERY_OTHER}, or numbers of layers such as 0,2,5")
    layers = sorted(map(int, words))
    if unknown := [layer for layer in layers if layer >= arch.layers]:
        raise UserError(f"--keep {text}: there is no layer {unknown[0]}: the layers are 0 to {arch.layers - 1}")
    if twice := [a for a, b in pairwise(layers) if a == b]:
        raise UserError(f"--keep {text}: layer {twice[0]} is named twice: name each once")
    return layers


def _beside(source: Path, layers: int) -> Path:
    """In the folder of the checkpoint's stage; of a checkpoint in none, beside it."""
    stage = source.absolute().parent
    return (
        stage.parent / f"pruned-{layers}" if stage.name == "checkpoints" else stage / f"{source.name}-pruned-{layers}"
    )


def _answer(
    source: Path,
    target: Path,
    existed: bool,
    manifest: Manifest,
    kept: Sequence[int],
    removed: Sequence[tuple[int, float]],
    losses: Sequence[float],
) -> command.Answer:
    certificate = Certificate.from_json(manifest.events[-1]["certificate"])
    rows = [["", "layers", "held-out loss"], ["whole", "", f"{losses[0]:.4f}"]]
    rows += [[f"without {layer}", "", f"{loss:.4f}"] for layer, loss in removed]
    rows.append(["pruned", ", ".join(map(str, kept)), f"{losses[1]:.4f}"])
    lines = [f"{source} -> {target}{' (is there already)' if existed else ''}", table(rows), str(certificate)]
    lines.append(f"{manifest.size:,} bytes in {len(manifest.files)} files")
    data = {
        "source": str(source),
        "target": str(target),
        "existed": existed,
        "hash": manifest.hash,
        "kept": list(kept),
        "removed": [{"layer": layer, "held_out_loss": loss} for layer, loss in removed],
        "held_out_loss": {"whole": losses[0], "pruned": losses[1]},
        "certificate": certificate.to_json(),
    }
    return command.Answer("\n".join(lines), data)


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

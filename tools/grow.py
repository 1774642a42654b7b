"""Grows a checkpoint into the first one of the next stage, offline, in one process or several.

A stage grows by itself when it starts, straight from its parent's checkpoint; this is for looking at the result first,
for other tools, and for machines that cannot read the parent. The result is what the stage would start with, bit for
bit, whatever the number of processes. DST is by default the step 0 of the stage's folder: the stage then starts from
it as it resumes from any of its checkpoints. Each file is an ordinary safetensors file of whole tensors. It can be
stopped, and goes on when it is started again. With --no-certificate the memory that each process needs does not depend
on the size of the model.

examples:
  python tools/grow.py runs/demo/seed --config configs/demo.yaml --stage wide
  python tools/grow.py runs/demo/seed /scratch/wide --config configs/demo.yaml --stage wide --processes 8
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from growth.certificate import Certificate
from growth.describe import describe_plan
from pretrain.checkpoint import Reader, find, step_folder
from pretrain.checkpoint.find import step_of
from pretrain.checkpoint.locate import locate
from pretrain.cli import command
from pretrain.config import Curriculum, Stage, load
from pretrain.errors import UserError
from pretrain.event.offline import write, written
from pretrain.event.plan import plan_of
from pretrain.event.teacher import taught
from pretrain.runtime.files import bits_per_byte, is_done
from pretrain.verify import audit


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a checkpoint, a stage or a run (its last finished stage)"
    )
    parser.add_argument("target", metavar="DST", type=Path, nargs="?", help="folder of the new checkpoint")
    parser.add_argument("--config", type=Path, required=True, help="the curriculum, a YAML file")
    parser.add_argument("--stage", required=True, help="name of the stage to grow into")
    parser.add_argument(
        "--no-certificate", action="store_true", help="do not measure whether the function is kept: constant memory"
    )
    parser.add_argument(
        "--processes", type=command.positive, default=1, help="that write at once (default: %(default)s)"
    )


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError and GrowthError: nothing is written for a plan that is impossible or breaks its claim."""
    began = time.monotonic()
    if options.processes < 1:
        raise UserError(f"--processes {options.processes}: it takes at least one")
    curriculum = load(options.config)
    stage = taught(curriculum, curriculum.stage(options.stage))
    if stage.grow.trial.candidates:
        raise UserError(f"stage {stage.name!r} chooses by grow.trial, which trains: start it, or empty its candidates")
    if stage.grow.learn.steps:
        raise UserError(
            f"stage {stage.name!r} learns its maps at its start (grow.learn): start it, or learn them with "
            "tools/learn_growth.py and name the file"
        )
    if stage.grow.clip == "scale":
        raise UserError(
            f"stage {stage.name!r} has grow.clip: scale, and only a start measures gradients: start it, or take it out"
        )
    source = locate(options.source, finished=True)
    target = options.target or _first_of(curriculum, stage)
    if step_of(target) not in (None, 0):
        raise UserError(f"{target}: a grown checkpoint is step 0 of its stage: name it step-00000000, or otherwise")
    with Reader(source) as reader:
        feed = audit.open_corpus(stage)
        plan = plan_of(curriculum, stage, reader.manifest, feed.tokenizer if feed else None)
        manifest = written(target, reader.manifest, plan, stage)
        existed = manifest is not None
        if manifest is None:
            certificate = None
            if not options.no_certificate:
                held_out = audit.text(plan, stage, feed)
                certificate = audit.certificate(plan, reader.read, held_out, stage.train.lr)
                certificate = replace(certificate, bits_per_byte_before=_bits_per_byte(source))
                certificate.require()
            bars = sys.stderr.isatty()
            manifest = write(reader, target, plan, stage, certificate, began, options.processes, bars)
        text = f"{source} -> {target}{' (is there already)' if existed else ''}\n{describe_plan(plan)}"
    event = manifest.events[-1]
    if event["certificate"]:
        text += f"\n{Certificate.from_json(event['certificate'])}"
    text += f"\n{manifest.size:,} bytes in {len(manifest.files)} files"
    data = {
        "source": str(source),
        "target": str(target),
        "existed": existed,
        "hash": manifest.hash,
        "bytes": manifest.size,
        "certificate": event["certificate"],
        "seconds": time.monotonic() - began,
    }
    return command.Answer(text, data)


def _first_of(curriculum: Curriculum, stage: Stage) -> Path:
    """The folder of step 0 of a stage. Raises UserError if the stage has begun."""
    root = curriculum.folder / stage.name / "checkpoints"
    newest = find(root).path
    if newest and newest != step_folder(root, 0):
        raise UserError(f"stage {stage.name!r} has begun already ({newest}): name a folder to grow into")
    return step_folder(root, 0)


def _bits_per_byte(checkpoint: Path) -> float | None:
    """The bits per byte of the last validation of the checkpoint's stage; None if the stage is not finished."""
    stage = checkpoint.absolute().parents[1]
    return bits_per_byte(stage) if is_done(stage) else None


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

"""Judges a model by tasks of lm-eval: a checkpoint, the newest of a stage or a run, or an export.

Needs the extra `eval` (pip install 'cambium[eval]'). A task is a name of lm-eval (its data are fetched, or in the cache
of `datasets`) or a YAML file in its format, whose data may be a file beside it. A checkpoint is exported to a temporary
folder, with its code where it goes with some, and transformers computes it: so a checkpoint and its export have the
same numbers. What comes of a checkpoint in the folder of a stage is kept there, in evaluations/, for tools/report.py,
tools/plot.py and the model card.

With --due, what `eval` of the stage asks for and has not been evaluated: what is run beside training.

examples:
  python tools/evaluate.py runs/demo --tasks hellaswag,arc_easy
  python tools/evaluate.py exports/wide --tasks my_task.yaml --limit 100 --device cuda
  python tools/evaluate.py runs/demo/wide --due
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from growth.describe import table
from pretrain.checkpoint import Manifest, find
from pretrain.checkpoint.find import step_of, steps
from pretrain.checkpoint.locate import locate
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.cli import command
from pretrain.config import Stage, stage_from
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.files import DTYPES
from pretrain.judge import harness, records
from pretrain.judge.records import Record
from pretrain.report import history
from pretrain.report.continuation import CONFIG, says_next, trusted, writes
from pretrain.runtime.files import Lock, make_folder

Judged = tuple[str, Mapping[str, Mapping[str, Any]], Mapping[str, str]]
"""The name of a model, its results and what failed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a checkpoint, a stage, a run (its last finished stage), or an export")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", metavar="TASK,...", help="names of lm-eval, and YAML files of one's own")
    what.add_argument("--due", action="store_true", help="of a stage: the tasks and checkpoints that its `eval` names")
    parser.add_argument("--limit", type=command.positive, metavar="N", help="samples of each task (default: all)")
    parser.add_argument(
        "--fewshot", type=int, metavar="N", help="examples before each sample (default: the task's own)"
    )
    parser.add_argument("--batch", type=command.positive, default=8, help="samples in a pass (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="(default here: %(default)s)")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="of a checkpoint's weights (default: %(default)s)"
    )
    parser.add_argument("--tokenizer", type=Path, help="as of tools/export_hf.py")


def work(options: argparse.Namespace) -> command.Answer:
    """Raises UserError for a model that is not there or writes no text, and where no task has a result."""
    harness.require()
    if options.due:
        return _due(options)
    tasks = list(filter(None, options.tasks.split(",")))
    if not tasks:
        raise UserError("--tasks: name at least one")
    harness.check_files(tasks, "--tasks")
    if (options.model / CONFIG).is_file():
        results, failed = _results(options.model, tasks, options)
        return _answer([(str(options.model), results, failed)], {})
    checkpoint = locate(options.model, finished=True)
    manifest = Manifest.load(checkpoint)
    record = _record(checkpoint, manifest, tasks, options)
    stage = checkpoint.absolute().parents[1]
    if not record.results:
        raise UserError("\n".join(f"{task}: {why}" for task, why in record.failed.items()))
    if checkpoint.parent.name == "checkpoints" and options.fewshot is None:
        records.keep(stage, record.with_earlier(records.find(stage, manifest)))
    return _answer([(str(checkpoint), record.results, record.failed)], {"step": record.step})


def _due(options: argparse.Namespace) -> command.Answer:
    """First what a stage has grown from, then the stage. One process at a time evaluates those of one stage; another
    waits, and then finds less to do."""
    folder: Path = options.model
    stage = stage_from(history.load_stage(folder).config, str(folder))
    done: list[Judged] = []
    for parent in _before(folder):
        with _alone(parent.absolute().parents[1]):
            if _before(folder):  # the stage that it is of may have evaluated it meanwhile
                done += _kept(parent, stage, options)
    with _alone(folder):
        while paths := records.waiting(folder, stage):
            done += _kept(paths[0], stage, options)
    return _answer(done, {}) if done else command.Answer(f"{folder}: nothing is due", {"models": []})


def _kept(checkpoint: Path, stage: Stage, options: argparse.Namespace) -> list[Judged]:
    """Evaluates a checkpoint and keeps the record; nothing where that is of no use any more."""
    record = _judged(checkpoint, stage, options)
    if _is_of_another_way(checkpoint, record):
        return []
    records.keep(checkpoint.absolute().parents[1], record)
    return [(str(checkpoint), record.results, record.failed)]


def _is_of_another_way(checkpoint: Path, record: Record) -> bool:
    """Whether the stage has gone back behind a checkpoint while it was evaluated. One that was removed because training
    is far ahead of evaluations is none of these."""
    if checkpoint.exists():
        return Manifest.load(checkpoint).hash != record.checkpoint
    newest = next(iter(steps(checkpoint.parent)), None)
    return newest is None or (step_of(newest) or 0) < record.step


def _before(folder: Path) -> list[Path]:
    """The checkpoint from which a stage has grown, where it is there and has no record: an import, say."""
    newest = find(folder / "checkpoints").manifest
    path = Path(newest.parent["path"]) if newest and newest.parent else None
    if path is None or path.parent.name != "checkpoints" or not (path / MANIFEST).is_file():
        return []
    return [] if records.find(path.absolute().parents[1], Manifest.load(path)) else [path]


def _judged(checkpoint: Path, stage: Stage, options: argparse.Namespace) -> Record:
    """The record of a checkpoint whatever happens, but for an end of this process: it is not tried again."""
    began, manifest = time.monotonic(), Manifest.load(checkpoint)  # which may not be there any more at the end
    options.limit = stage.eval.limit or None
    try:
        return _record(checkpoint, manifest, stage.eval.tasks, options)
    except (UserError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        failed = dict.fromkeys(stage.eval.tasks, why)
        about = {"limit": options.limit, "harness": _harness(), "took": time.monotonic() - began}
        return Record.of(manifest, results={}, failed=failed, **about)


def _record(checkpoint: Path, manifest: Manifest, tasks: Sequence[str], options: argparse.Namespace) -> Record:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cambium-evaluate-") as place:
        folder = Path(place) / "export"
        export(checkpoint, folder, dtype=options.dtype, shard_bytes=4 * 10**9, tokenizer=options.tokenizer)
        results, failed = _results(folder, tasks, options)
    about = {"limit": options.limit, "harness": _harness(), "took": time.monotonic() - began}
    return Record.of(manifest, results=results, failed=failed, **about)


def _results(
    folder: Path, tasks: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    if not writes(folder):
        raise UserError(f"{options.model}: tasks of lm-eval need a model that writes text, and this one fills gaps")
    if not says_next(folder):
        raise UserError(f"{options.model}: tasks of lm-eval score the next token, and this model predicts others")
    how = {"limit": options.limit, "fewshot": options.fewshot, "batch": options.batch, "device": options.device}
    return harness.evaluate(folder, tasks, trusted=trusted(folder), **how)


def _harness() -> str:
    return f"lm-eval {harness.release()}"


@contextmanager
def _alone(stage: Path) -> Iterator[None]:
    """Holds the lock of the evaluations of a stage, by its folder, once whoever has it gives it back."""
    make_folder(stage / records.FOLDER)
    while True:
        try:
            lock = Lock(stage / records.FOLDER / "lock")
            break
        except UserError:
            time.sleep(1)
    with lock:
        yield


def _answer(judged: Sequence[Judged], more: Mapping[str, Any]) -> command.Answer:
    lines = []
    for name, results, failed in judged:
        rows = [["", "task", "metric", "value", "error", "samples", "shots"]]
        for task, result in results.items():
            for metric, value in result["metrics"].items():
                error = result["errors"].get(metric)
                shown = "" if error is None else f"{error:.4f}"
                rows.append(["", task, metric, f"{value:.4f}", shown, str(result["samples"]), str(result["fewshot"])])
        lines += [name, table(rows), *(f"  {task} failed: {why}" for task, why in failed.items())]
    data = {"models": [{"model": n, "results": r, "failed": f} for n, r, f in judged], **more}
    return command.Answer("\n".join(lines), data, code=int(any(failed for *_, failed in judged)))


main = partial(command.run, __doc__, arguments, work)

if __name__ == "__main__":
    sys.exit(main())

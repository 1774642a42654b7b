"""Where a stage's figures go: metrics.jsonl always; Weights & Biases, TensorBoard and the console beside it.

A record has: step (of the stage); tokens, flops (of the model, growth included) and seconds (of training), cumulative
over the curriculum; then loss (what is minimised, nats per token), its terms where there are several (of a stage with a
teacher distill_loss among them), bits_per_byte, lr (of the newest generation; where there are several, lr_generation_0
and so on of each), grad_norm, of several corpora share_NAME (its share of the stage's samples so far),
tokens_per_second, tokens_per_second_per_gpu, model_tflops_per_second_per_gpu and, on a GPU whose peak is known, mfu;
or, of a validation, validation_loss and validation_bits_per_byte (of several corpora their means by share, and each
with the corpus's name behind it), and the same of an average of the weights as validation_average_loss and so on; or,
of a checkpoint, checkpoint_seconds and checkpoint_stall_seconds; or, of a rollback, the step that it came from,
rolled_back_from; or, of a checkpoint on which tasks were run beside training, eval/TASK/METRIC, at the place of the
checkpoint and so behind later records. A step that made no update has skipped, 1. Where heads have spans, a step has
span_mean_BLOCK and span_max_BLOCK too, and a validation span_BLOCK_HEAD, in tokens, blocks and heads counted from 0.
On a machine without GPUs "per GPU" is per rank.
"""

import json
import logging
import math
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from pretrain.config import Curriculum, Stage
from pretrain.errors import UserError
from pretrain.estimate.flops import peak_flops
from pretrain.runtime.documents import one_line, show
from pretrain.runtime.files import write_file
from pretrain.runtime.ranks import is_first
from pretrain.schedule.progress import Progress

log = logging.getLogger(__name__)

Record = Mapping[str, float]
METRICS, JUDGED = "metrics.jsonl", "eval/"
LARGEST = 1e100  # of a figure: what is drawn and compared must not overflow


class Metrics:
    """The figures of one stage, written by rank 0; on other ranks every method does nothing.

    What comes after `progress` in a metrics.jsonl that exists is dropped: those steps are trained again.
    """

    def __init__(self, folder: Path, curriculum: Curriculum, stage: Stage, progress: Progress, world: int) -> None:
        self._interval, self._world, self._last = stage.log.interval, world, progress
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self._peak = peak_flops(device, stage.train.precision)
        self._sinks: list[Sink] = []
        self._optional: dict[str, Sink] = {}  # only for looking at: their failure must not stop a stage
        if not is_first():
            return
        self._sinks = [JsonLines(folder / METRICS, progress.step), Console(stage, progress)]
        if stage.log.tensorboard:
            with self._may_fail("tensorboard"):
                self._optional["tensorboard"] = TensorBoard(folder / "tensorboard", progress)
        if stage.log.wandb:
            with self._may_fail("wandb"):
                self._optional["wandb"] = WeightsAndBiases(folder, curriculum, stage)

    def step(self, progress: Progress, **values: float) -> None:
        """After every optimizer step: values (loss, lr, grad_norm and what else the family has) are of that step alone,
        so that a resumed stage writes what an undisturbed one does; every `log.interval` steps they are a record.

        With `skipped`, no update was made, which is a record at once.
        """
        due = progress.step % self._interval == 0
        if due or "skipped" in values:
            self.log(progress, **values, **(self._speed(progress) if due else {}))
        if due:
            self._last = progress
        for sink in self._sinks:
            sink.advance(progress)

    def log(self, progress: Progress, **values: float) -> None:
        """A record at this point, now: a validation, say. A value that is not finite is left out: JSON has none."""
        place = dict(step=progress.step, tokens=progress.tokens, flops=progress.flops, seconds=progress.seconds)
        record = {**place, **{key: value for key, value in values.items() if math.isfinite(value)}}
        if self._sinks and len(record) < len({**place, **values}) and "skipped" not in values:
            log.warning("at step %d not finite: %s", progress.step, ", ".join(sorted({*values} - {*record})))
        for sink in self._sinks:
            sink.write(record)
        for name, sink in list(self._optional.items()):
            with self._may_fail(name):
                sink.write(record)

    def _speed(self, progress: Progress) -> dict[str, float]:
        """Since the last record. Validations, checkpoints and starts are not in `seconds`."""
        seconds = max(progress.seconds - self._last.seconds, 1e-9)
        tokens_per_second = (progress.tokens - self._last.tokens) / seconds
        flops_per_second = (progress.flops - self._last.flops) / seconds / self._world
        speed = dict(
            tokens_per_second=tokens_per_second,
            tokens_per_second_per_gpu=tokens_per_second / self._world,
            model_tflops_per_second_per_gpu=flops_per_second / 1e12,
        )
        return speed if self._peak is None else {**speed, "mfu": flops_per_second / self._peak}

    @contextmanager
    def _may_fail(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._optional.pop(name, None)
            log.warning("%s is off from here on: %s", name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()
        for name, sink in list(self._optional.items()):
            with self._may_fail(name):
                sink.close()


class Sink:
    """A place for records."""

    def write(self, record: Record) -> None:
        """Keep or show a record."""

    def advance(self, progress: Progress) -> None:
        """Called after every step, for progress bars."""

    def close(self) -> None:
        """The stage has ended."""


class JsonLines(Sink):
    """One JSON object a line, handed to the operating system at once: it survives a kill of the process."""

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            records = [record for record in read(path) if _stays(record, step)]
            write_file(path, "".join(f"{json.dumps(record)}\n" for record in records).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(f"{json.dumps(record)}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl by their steps; a line that a kill cut off is left out. A value may be NaN or
    infinite.

    Raises UserError for a file that cannot be read and for a record without its place or with what is no number.
    """
    return sorted(_records(path), key=lambda record: record["step"])


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: no record, but {show(record)}")
        if missing := sorted({"step", "tokens", "flops", "seconds"} - set(record)):
            raise UserError(f"{path}, line {number}: a record without {missing[0]}")
        for key, value in record.items():
            if not _is_figure(key, value):
                raise UserError(f"{path}, line {number}: {one_line(key)} is {show(value)}")
        yield record


def judged(path: Path) -> set[int]:
    """The steps of whose evaluations there are records."""
    return {record["step"] for record in read(path) if is_judgement(record)}


def is_judgement(record: Record) -> bool:
    """Whether it is of an evaluation, whose step may be long before that of the record before."""
    return any(key.startswith(JUDGED) for key in record)


def _is_figure(key: str, value: Any) -> bool:
    if key in ("step", "tokens"):
        return type(value) is int and 0 <= value <= LARGEST
    if key in ("flops", "seconds"):
        return type(value) in (int, float) and 0 <= value <= LARGEST
    return type(value) in (int, float) and (abs(value) <= LARGEST or not math.isfinite(value))


def _stays(record: Mapping[str, Any], step: int) -> bool:
    # A stage that starts again validates before its first step, or rolls back again, so that record comes anew.
    again = "validation_loss" in record or "rolled_back_from" in record
    return record["step"] < step or (record["step"] == step and not again)


class Console(Sink):
    """A progress bar on a terminal, plain lines otherwise."""

    def __init__(self, stage: Stage, progress: Progress) -> None:
        self._stage, self._steps = stage, stage.train.steps()
        self._bar = (
            tqdm(
                desc=stage.name,
                total=stage.train.tokens,
                initial=progress.stage_tokens,
                unit="token",
                unit_scale=True,
                dynamic_ncols=True,
            )
            if sys.stderr.isatty()
            else None
        )

    def advance(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.update(progress.stage_tokens - self._bar.n)

    def write(self, record: Record) -> None:
        if self._bar is not None and "loss" in record:
            self._bar.set_postfix_str(self._text(record, ("loss", "bits_per_byte", "lr")))
            return
        line = f"{self._stage.name}: step {record['step']}/{self._steps}, {self._text(record, FORMATS)}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _text(self, record: Record, keys: Iterable[str]) -> str:
        words = [FORMATS[key].format(record[key]) for key in keys if key in record]
        words += [f"{key.removeprefix(JUDGED)} {record[key]:.4f}" for key in record if key.startswith(JUDGED)]
        return ", ".join(words)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


FORMATS = {
    "skipped": "skipped",
    "rolled_back_from": "back from step {}",
    "loss": "loss {:.4f}",
    "bits_per_byte": "{:.4f} bits/byte",
    "validation_loss": "validation loss {:.4f}",
    "validation_bits_per_byte": "validation {:.4f} bits/byte",
    "validation_average_loss": "of the average {:.4f}",
    "checkpoint_seconds": "checkpoint written in {:.1f} s",
    "checkpoint_stall_seconds": "training stood still for {:.1f} s",
    "lr": "lr {:.2e}",
    "grad_norm": "grad norm {:.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
}


class TensorBoard(Sink):
    """TensorBoard, with tokens of the run as its x axis."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=progress.tokens + 1)

    def write(self, record: Record) -> None:
        for key, value in record.items():
            self._writer.add_scalar(key, value, record["tokens"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Sink):
    """Weights & Biases, offline unless the user is logged in; a stage is a run, a curriculum a group.

    WANDB_MODE, WANDB_PROJECT and the like work as ever.
    """

    def __init__(self, folder: Path, curriculum: Curriculum, stage: Stage) -> None:
        import wandb

        identity = folder / "wandb-id"  # a resumed stage goes on in its run
        if not identity.exists():
            write_file(identity, secrets.token_hex(4).encode())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cambium"),
            group=curriculum.name,
            name=f"{curriculum.name}/{stage.name}",
            id=identity.read_text(),
            resume="allow",
            dir=str(folder),
            config=stage.to_dict(),
            mode=None if "WANDB_MODE" in os.environ else "online" if wandb.login(prompt=False) else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="tokens")

    def write(self, record: Record) -> None:
        self._run.log(dict(record))

    def close(self) -> None:
        self._run.finish()

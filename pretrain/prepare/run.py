"""Runs a pipeline: all of it in processes here, or one task of one phase, as a scheduler's array asks for.

A task that is done is not done again: datatrove marks it, and here the mark is made only when all that the task has
written is on the disk. A task that was stopped at any moment begins anew and writes the same bytes.
"""

from __future__ import annotations

import copy
import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from loguru import logger

from pretrain.data.corpus.corpus import TOKENIZER
from pretrain.data.corpus.encoders import ByteLevelEncoder, Encoder, SentencePieceEncoder, WordPieceEncoder
from pretrain.data.corpus.prepare import LOCK, existing
from pretrain.data.tokenizers.byte_level import is_byte_level
from pretrain.errors import UserError
from pretrain.prepare.keys import COMPRESSED, Pipeline, kind_of, load
from pretrain.prepare.phases import WORK, Phase, Work
from pretrain.prepare.reading import load_dataset
from pretrain.runtime import documents
from pretrain.runtime.files import Lock, fsync_folder, hash_of, make_folder, write_json
from pretrain.runtime.forks import spread

REQUEST, LOCKS = "request.json", "locks"
EXPANDS = 4  # a compressed file's text is about so many times as large
NEEDS = 1.5  # bytes of disk for each byte of text: kept text, signatures and tokens

LIBC = ctypes.CDLL(None, use_errno=True)

logger.disable("datatrove")  # errors are said once, by the command line

OnProgress = Callable[[str, int, int], None]  # a phase, its number and how many there are


class Executor(LocalPipelineExecutor):
    """datatrove's, which marks a task as done when what it has written is on the disk.

    It has no server process, which datatrove's leaves behind when it is killed.
    """

    def __init__(self, phase: Phase, work: Path, workers: int) -> None:
        log = str(work / "done" / phase.name)
        super().__init__(phase.steps(), phase.tasks, min(workers, phase.tasks), log)
        self.work = work

    def run(self) -> None:
        """Does the tasks that are not done, with as many processes as there are workers. Raises UserError as they do,
        and where one was killed."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1 or len(ranks) < 2:
            for rank in ranks:
                self.run_task(rank)
        else:
            spread(lambda nth, _: self.run_task(ranks[nth]), len(ranks), self.workers, lambda *_: None, lambda _: None)

    def run_task(self, rank: int) -> None:
        """Does one task, unless it is done."""
        executor = copy.copy(self)
        executor.pipeline = copy.deepcopy(self.pipeline)  # steps count what they do
        executor._run_for_rank(rank)

    def mark_rank_as_completed(self, rank: int) -> None:
        """As datatrove does, after a sync of the file system."""
        folder = os.open(self.work, os.O_RDONLY)
        try:
            if LIBC.syncfs(folder):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self.work))
        finally:
            os.close(folder)
        super().mark_rank_as_completed(rank)


class Job:
    """A pipeline's file, checked."""

    def __init__(self, file: Path) -> None:
        """Raises UserError for a file with something unknown or unusable in it, with its place."""
        self.file, self.pipeline = file, load(file)
        self.output = Path(self.pipeline.output)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.encoder = _encoder(self.pipeline)
        self.request = _request(self.pipeline, self.encoder)
        self.work = Work(self.pipeline, self.partial, self.encoder, self.request, str(file))

    @property
    def phases(self) -> list[Phase]:
        """What is to be done."""
        return self.work.phases

    def existing(self) -> dict[str, Any] | None:
        """The description of the corpus, if it is there; UserError if it is another."""
        if not self.output.exists():
            return None
        description = existing(self.output, self.request)
        self._tidy()
        return description

    def begin(self) -> list[Phase]:
        """Makes the folder of the work, without what another pipeline has left in it; gives the phases of which
        something is left to do.

        Raises UserError where the disk has no room, and where tasks of that other pipeline still run.
        """
        if _written(self.partial) != self.request:
            self.alone()
            make_folder(self.partial)
            for path in self.partial.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._check_room()
            if self.pipeline.read.dataset:
                load_dataset(self.pipeline.read)
            if self.encoder.given:
                self.encoder.given.save(self.partial / TOKENIZER)
            write_json(self.partial / REQUEST, self.request)
        make_folder(self.work.work)
        left = [p for p in self.phases if Executor(p, self.work.work, 1).get_incomplete_ranks()]
        return left or self.phases[-1:]  # the last phase also ends the work

    def alone(self) -> None:
        """Raises UserError, naming who does it, while a task is done by itself."""
        for path in sorted((self.work.work / LOCKS).glob("*")):
            Lock(path).release()

    def finish(self) -> None:
        """Gives the folder its name."""
        os.replace(self.partial, self.output)
        fsync_folder(self.output.parent)
        self._tidy()

    def _tidy(self) -> None:
        for name in (REQUEST, LOCK):
            (self.output / name).unlink(missing_ok=True)
        shutil.rmtree(self.output / WORK, ignore_errors=True)

    def _check_room(self) -> None:
        sizes = [(file, file.stat().st_size) for file in self.pipeline.files]
        plain = [size * (EXPANDS if kind_of(f) != "jsonl" or f.suffix in COMPRESSED else 1) for f, size in sizes]
        need, free = NEEDS * sum(plain), shutil.disk_usage(self.partial).free
        if free < need:
            raise UserError(
                f"{self.partial.parent} has {free / 1e9:,.1f} GB free, and this needs about {need / 1e9:,.1f} GB: make "
                "room, or give an output on another disk"
            )


def prepare(job: Job, workers: int, progress: OnProgress = lambda *_: None) -> tuple[dict[str, Any], bool]:
    """Makes the corpus, with so many processes. Gives its description, and whether it was there already.

    Raises UserError for what cannot be prepared.
    """
    if (description := job.existing()) is not None:
        return description, True
    make_folder(job.partial)
    with Lock(job.partial / LOCK):
        job.alone()
        job.begin()
        for number, phase in enumerate(job.phases):
            progress(phase.name, number, len(job.phases))
            Executor(phase, job.work.work, workers).run()
        job.finish()
    return existing(job.output, job.request), False


def begin(job: Job) -> list[Phase]:
    """The phases of which something is left to do, for tasks that are done by themselves; none where the corpus is
    there. Raises UserError as `Job.begin` does, and while `prepare` makes the same corpus."""
    if job.existing() is not None:
        return []
    make_folder(job.partial)
    with Lock(job.partial / LOCK):
        return job.begin()


def run_task(job: Job, name: str, task: int) -> None:
    """One task of a phase, after `begin` and the phases before; that of the last phase ends the work.

    Raises UserError where the file is not that of the work that was begun.
    """
    if job.existing() is not None:
        return
    if _written(job.partial) != job.request:
        raise UserError(f"{job.partial}: what was begun here is not what {job.file} says now: begin it again")
    phase = next((phase for phase in job.phases if phase.name == name), None)
    if phase is None or not 0 <= task < phase.tasks:
        raise UserError(f"{job.file} has no task {task} of a phase {name!r}")
    locks = job.work.work / LOCKS
    make_folder(locks)
    with Lock(locks / f"{name}-{task}"):
        Executor(phase, job.work.work, 1).run_task(task)
    if name == job.phases[-1].name:
        job.finish()


def _written(partial: Path) -> Any:
    try:
        return documents.read(partial / REQUEST, documents.Object)
    except UserError:
        return None


def _encoder(pipeline: Pipeline) -> Encoder[Any]:
    tokens = pipeline.tokens
    path = Path(tokens.tokenizer) if tokens.tokenizer else None
    if tokens.kind != "causal":
        return WordPieceEncoder(path, tokens.vocab_size, lowercase=tokens.kind == "wordpiece")
    if path and is_byte_level(path):
        return ByteLevelEncoder(path)
    return SentencePieceEncoder(path, tokens.vocab_size)


def _request(pipeline: Pipeline, encoder: Encoder[Any]) -> dict[str, Any]:
    """What the corpus depends on, for JSON: the file's keys but for where it is made, files by name and size."""
    read = pipeline.read
    files = [{"name": str(file), "bytes": file.stat().st_size} for file in pipeline.files]
    source = {"dataset": read.dataset, "split": read.split} if read.dataset else {"files": files}
    rules = [Path(str(options.get("file"))) for rule in pipeline.filters for options in rule.values() if options]
    return {
        "source": {**source, "text": read.text},
        "filters": list(pipeline.filters),
        "functions": [hash_of(file) for file in rules if file.is_file()],
        "exact": pipeline.exact,
        "near": vars(pipeline.near),
        "least": pipeline.tokens.least,
        "tasks": pipeline.tasks,
        "samples": pipeline.samples,
        **encoder.request(),
    }

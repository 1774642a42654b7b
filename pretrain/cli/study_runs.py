"""The runs of a study on a machine: their curricula as files, which have ended, and how the next one is trained."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from pretrain.config import Curriculum
from pretrain.errors import UserError
from pretrain.report import comparison
from pretrain.report.comparison import Line
from pretrain.runtime.files import Lock, is_done, make_folder, write_file
from pretrain.study import curricula
from pretrain.study.curricula import Run
from pretrain.study.keys import Study

ROOT = Path(__file__).parents[2]
DIVERGES = "the training diverges"
"""What the guard says of a stage that it ends since it would diverge again; see pretrain.guard.health."""


class Runs:
    """The runs of a study: each a folder OUTPUT/NAME/RUN, with its curriculum RUN.yaml and what it said, RUN.log."""

    def __init__(self, study: Study, path: Path) -> None:
        """path: the study's file."""
        self.study, self.path = study, path
        self.lines: dict[str, Line] = {}
        self.diverged: list[str] = []

    def curriculum(self, run: Run) -> Curriculum:
        return curricula.curriculum(self.study, run, self.path)

    def read(self, runs: Iterator[Run]) -> None:
        """Reads those that have ended into `lines`, by name, and the names of those that diverged into `diverged`.

        Raises UserError for a run that was begun with another curriculum than the study has now.
        """
        for run in runs:
            if run.name in self.lines or run.name in self.diverged:
                continue
            folder = self.study.folder / run.name
            if not folder.is_dir():
                continue
            self._compare(run)
            if (folder / "DIVERGED").exists():
                self.diverged.append(run.name)
            elif all(is_done(folder / stage.name) for stage in self.curriculum(run).stages):
                (self.lines[run.name],) = comparison.lines([folder])

    def state(self, run: Run) -> str:
        """done, diverged, begun or new."""
        if run.name in self.lines:
            return "done"
        if run.name in self.diverged:
            return "diverged"
        return "begun" if (self.study.folder / run.name).is_dir() else "new"

    def take(self, run: Run) -> Lock | None:
        """The lock of a run, which a process holds while it trains it; None while another one does."""
        try:
            return Lock(self.study.folder / f".{run.name}.lock")
        except UserError:
            return None

    def train(self, run: Run, deadline: float) -> bool:
        """Trains a run to its end, from where it is, on this machine. False: it was stopped, and saved, at the deadline
        (of time.monotonic).

        Raises UserError when it ends with an error.
        """
        if (self.study.folder / run.name / "DIVERGED").exists():
            return True
        file = self._write(run)
        log = file.with_suffix(".log")
        for stage in self.curriculum(run).stages:
            if is_done(self.study.folder / run.name / stage.name):
                continue
            code, begin = self._stage(file, stage.name, log, deadline)
            if code == 2 and DIVERGES in _since(log, begin):
                write_file(self.study.folder / run.name / "DIVERGED", b"")
                return True
            if code:
                said = _since(log, begin).strip().splitlines()
                reason = next((line for line in reversed(said) if line.startswith("error: ")), said[-1] if said else "")
                raise UserError(f"{run.name}: stage {stage.name!r} ended with exit code {code}, see {log}: {reason}")
            if not is_done(self.study.folder / run.name / stage.name):
                return False
        return True

    def _stage(self, file: Path, stage: str, log: Path, deadline: float) -> tuple[int, int]:
        """The exit code of a stage, and where in `log` it begins to speak; asked to save and leave at the deadline, or
        when this process is interrupted, which ends the study as a deadline does."""
        # One thread: two add in another order.
        environment = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **os.environ}
        with open(log, "ab") as out:
            begin = out.tell()
            command = ["bash", str(ROOT / "slurm/stage.sh"), str(file), stage]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
            try:
                return process.wait(max(0.0, deadline - time.monotonic()) if deadline != float("inf") else None), begin
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.terminate()
                return process.wait(), begin

    def submit(self, run: Run) -> str:
        """Submits what is left of a run as jobs, once; gives what sbatch said. One whose last job said that it diverges
        is marked, and not submitted again."""
        file = self._write(run)
        if any(DIVERGES in _last_job(file.with_suffix("") / stage.name) for stage in self.curriculum(run).stages):
            write_file(file.with_suffix("") / "DIVERGED", b"")
            return f"{run.name} has diverged"
        command = ["bash", str(ROOT / "slurm/curriculum.sh"), str(file)]
        environment = {"PYTHON": sys.executable, **os.environ}
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
        if said.returncode:
            raise UserError(f"{run.name} cannot be submitted: {' '.join(said.stderr.split())}")
        return said.stdout.strip()

    def _write(self, run: Run) -> Path:
        """The file of a run's curriculum, written if it is not there."""
        file = self.study.folder / f"{run.name}.yaml"
        make_folder(file.parent)
        if (self.study.folder / run.name).is_dir():
            self._compare(run)
        else:
            write_file(file, yaml.safe_dump(curricula.document(self.study, run), sort_keys=False).encode())
            make_folder(self.study.folder / run.name)
        return file

    def _compare(self, run: Run) -> None:
        file = self.study.folder / f"{run.name}.yaml"
        try:
            before = yaml.safe_load(file.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read, and {run.name} was begun with it: {error}") from error
        now = yaml.safe_load(yaml.safe_dump(curricula.document(self.study, run)))
        if before != now:
            keys = ", ".join(sorted(key for key in {*before, *now} if before.get(key) != now.get(key)))
            raise UserError(
                f"{self.path}: {run.name} was begun with other keys ({keys}; see {file}), so it is not of this study: "
                f"give the study another name, or remove {file.with_suffix('')} and its file"
            )


def _last_job(stage: Path) -> str:
    """What the newest job of a stage has said; nothing, where there was none."""
    logs = sorted(stage.glob("job-*.log"), key=lambda log: log.stat().st_mtime)
    return logs[-1].read_text(encoding="utf-8", errors="replace") if logs else ""


def _since(log: Path, begin: int) -> str:
    return log.read_bytes()[begin:].decode(errors="replace")

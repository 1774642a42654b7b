"""The evaluation of checkpoints beside the training of their stage, which neither waits for it nor fails with it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from pretrain.checkpoint.find import step_of
from pretrain.config import Stage
from pretrain.errors import UserError
from pretrain.judge import records
from pretrain.judge.records import Record
from pretrain.runtime.files import make_folder

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]


class Beside:
    """Has the checkpoints of a stage evaluated; of rank 0, for a stage that has tasks.

    In a job of SLURM that has sbatch, by a job of its own for each checkpoint, one after the other. Elsewhere by a
    process on this machine that takes only what training leaves of the CPUs, and nothing of the GPUs; a new one is
    begun when a checkpoint is there and the last process has ended, which goes on as long as anything is due. It
    outlives the stage.
    """

    def __init__(self, folder: Path, stage: Stage, known: Collection[int], step: int) -> None:
        """folder: of the stage. known: steps whose results metrics have already. step: from which the stage goes on;
        what is known of later ones is of another way, which was left."""
        self.folder, self.stage = folder, stage
        self._known = set(known)
        self._asked: set[int] = set()  # steps that were waiting at the last call of `begin`
        self._process: subprocess.Popen[bytes] | None = None
        make_folder(folder / records.FOLDER)
        records.forget(folder, after=step)

    def spared(self) -> set[int]:
        """The steps whose checkpoints must stay, since they are still to be evaluated."""
        return {step_of(path) or 0 for path in records.waiting(self.folder, self.stage)}

    def begin(self) -> None:
        """To be called when a checkpoint has been committed, or the stage has ended. Says what goes wrong."""
        try:
            asked, waiting = self._asked, self.spared()
            self._asked = waiting
            if not waiting:
                return
            if os.environ.get("SLURM_JOB_ID") and shutil.which("sbatch"):
                if waiting - asked:
                    self._process = self._start(self._job())
            elif self._process is None or self._process.poll() is not None:
                tool = [sys.executable, str(ROOT / "tools/evaluate.py"), str(self.folder), "--due", "--device", "cpu"]
                few = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
                self._process = self._start(["nice", "-n", "19", *tool], **few)
        except (OSError, UserError) as error:
            log.warning("no evaluation has been started: %s", error)

    def news(self) -> list[Record]:
        """The evaluations that have come since the last call, of which failures are said."""
        try:
            fresh = records.read(self.folder, self._known)
        except UserError as error:
            log.warning("%s", error)
            return []
        for record in fresh:
            self._known.add(record.step)
            for task, why in record.failed.items():
                log.warning("step %d could not be evaluated on %s: %s", record.step, task, why)
        return fresh

    def _job(self) -> list[str]:
        folder = self.folder.resolve()
        name = f"cambium-{folder.parent.name}-{folder.name}-eval"
        output = str(folder / records.FOLDER).replace("%", "%%")
        options = ["--nodes=1", "--ntasks=1", f"--job-name={name}", "--dependency=singleton"]
        options += [f"--output={output}/job-%j.log"]
        if os.environ.get("CAMBIUM_GPUS", "1") != "0":
            options.append("--gpus-per-node=1")
        return ["sbatch", *options, str(ROOT / "slurm/evaluate.sh"), str(folder)]

    def _start(self, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        """Begins a process that is none of these ranks, and outlives them. more: of its environment."""
        environment = {key: value for key, value in os.environ.items() if not _of_a_rank(key)}
        with open(self.folder / records.FOLDER / "log", "ab") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**environment, **more},
                start_new_session=True,
            )


def _of_a_rank(variable: str) -> bool:
    """Whether libraries would take a variable for a word to them: that they are a rank of this stage, or in its job."""
    prefixes = ("SLURM_", "SRUN_", "PMI", "RANK", "WORLD_", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
    return variable.startswith(prefixes) and variable != "SLURM_CONF"

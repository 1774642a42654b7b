"""The mirror of a stage beside its training, which neither waits for it nor fails with it; what comes back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from typing_extensions import TypedDict

from pretrain.checkpoint import mirror
from pretrain.config import Curriculum, Stage
from pretrain.errors import UserError
from pretrain.runtime import documents, storage
from pretrain.runtime.documents import Count, Text
from pretrain.runtime.files import is_done

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
WAIT, LONGEST = 60.0, 3600.0  # seconds after a failure until the next try, and the most after many


class State(TypedDict):
    """What the last sending did; see pretrain.checkpoint.mirror.STATE. newest: of this stage's steps that are there."""

    sending: Count | None
    newest: Count | None
    problem: Text | None


def url_of(base: str, folder: Path) -> str:
    """Where a stage with this folder is mirrored: BASE/RUN/STAGE. base: checkpoint.mirror."""
    return f"{base.rstrip('/')}/{folder.absolute().parent.name}/{folder.name}"


def state_of(folder: Path) -> State | None:
    """What is known of a stage's mirror; None before anything is."""
    try:
        state: State = documents.read(folder / mirror.STATE, State)
    except UserError:
        return None
    return state


class Mirroring:
    """Has the checkpoints of a stage mirrored by a process on this machine that takes only what training leaves of the
    CPUs; of rank 0, for a stage that has a mirror. The process ends when nothing is missing, and may outlive the
    stage: whatever ends it, the next one goes on."""

    def __init__(self, folder: Path, base: str) -> None:
        """base: checkpoint.mirror."""
        self.folder, self._base = folder, base
        self._process: subprocess.Popen[bytes] | None = None
        self._wait, self._again = WAIT, 0.0
        self._more = False  # whether something was committed that the process may have come too early to see
        if not mirror.is_empty(folder):  # what could not be sent before the stage was stopped
            self.begin()

    def begin(self) -> None:
        """To be called when a checkpoint has been committed."""
        self._more = self._process is not None
        if self._process is None:
            self._process = _start(self.folder, self._base)

    def spared(self) -> set[int]:
        """The step that is being sent, whose checkpoint must stay until it has been."""
        state = state_of(self.folder) if self._process else None
        return {state["sending"]} if state and state["sending"] is not None else set()

    def news(self) -> dict[str, float]:
        """What came of the process, for metrics, once it has ended; begins it again, later and later, if it failed."""
        if self._process is None:
            if time.monotonic() > self._again > 0:
                self._again = 0.0
                self.begin()
            return {}
        code = self._process.poll()
        if code is None:
            return {}
        self._process, state = None, state_of(self.folder)
        newest = {"mirrored_step": float(state["newest"])} if state and state["newest"] is not None else {}
        if code == 0:
            self._wait = WAIT
            if self._more:
                self.begin()
            return newest
        problem = (state["problem"] if state else None) or f"its process ended with code {code}"
        log.warning("the mirror of %s is behind, and tried again in %.0f s: %s", self.folder, self._wait, problem)
        self._again, self._wait = time.monotonic() + self._wait, min(2 * self._wait, LONGEST)
        return {**newest, "mirror_failed": 1.0}


def finish(folder: Path, base: str) -> None:
    """Waits until all that is missing in the mirror of a stage has been sent; a failure is said, and no more.

    base: checkpoint.mirror of the curriculum now, which may be set after the stage has ended.
    """
    began = time.monotonic()
    if code := _start(folder, base).wait():
        state = state_of(folder)
        problem = (state["problem"] if state else None) or f"its process ended with code {code}"
        log.warning(
            "the mirror of %s is not complete: %s; %s sends what is missing",
            folder,
            problem,
            " ".join(_command(folder, base)),
        )
    else:
        log.info("all of %s is mirrored, after %.1f s", folder, time.monotonic() - began)


def bring_back(curriculum: Curriculum, stage: Stage) -> None:
    """Brings back, where this machine has nothing of them, the stage and the earlier ones from which it goes on.

    Raises UserError where there is a mirror and it cannot be used: the stage would do again what has been done.
    """
    folder = _bring_back(curriculum, stage)
    if is_done(folder):
        return
    parent = curriculum.parent(stage) if mirror.is_empty(folder) else None
    names = {stage.distill.teacher, parent.name if parent else ""} - {stage.name}
    for earlier in curriculum.stages:
        if earlier.name in names:
            _bring_back(curriculum, earlier)


def _bring_back(curriculum: Curriculum, stage: Stage) -> Path:
    folder = curriculum.folder / stage.name
    if stage.checkpoint.mirror and mirror.is_empty(folder):
        url = url_of(stage.checkpoint.mirror, folder)
        if path := mirror.bring_back(folder, url):
            log.warning("%s: brought back from %s", path, url)
    return folder


def check(curriculum: Curriculum, stage: Stage) -> None:
    """Raises UserError, before anything is queued, for a mirror that cannot be used, or is another run's."""
    folder = curriculum.folder / stage.name
    if not stage.checkpoint.mirror or is_done(folder):
        return
    url = url_of(stage.checkpoint.mirror, folder)
    there = storage.listing(url)
    if not mirror.is_empty(folder):
        mirror.check_owner(folder, url, there)
    probe = f"{url}/probe-{uuid.uuid4().hex}"
    storage.put_bytes(b"?", probe)
    storage.remove(probe)


def _command(folder: Path, base: str) -> list[str]:
    return [sys.executable, "-m", "pretrain.cli.mirror", str(folder), "--mirror", base]


def _start(folder: Path, base: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with open(folder / "mirror.log", "ab") as out:
        return subprocess.Popen(
            ["nice", "-n", "19", *_command(folder, base)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

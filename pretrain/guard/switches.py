"""Stopping and saving a running stage: by a signal, or by a file `STOP` or `SAVE` that a user puts into its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from pretrain.runtime.ranks import is_first

log = logging.getLogger(__name__)

STOPPED = "STOPPED"


class Asked(IntEnum):
    """What is asked of a stage; of several wishes the largest one counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class Switches:
    """The wishes of the user and of the scheduler, as this rank sees them. What is asked of the stage is the largest
    wish of all ranks: they tell it each other in every step, see pretrain.engine.exchange.

    `STOP` saves and leaves, as USR1 does; `SAVE` saves and goes on. Rank 0 looks for them in every step. A switch
    that has been honoured is gone: `SAVE` is removed when the checkpoint is on the disk, and `STOP` becomes `STOPPED`,
    which tells a script that the user, and not the scheduler, wanted the stage to stop. It stays until the next start.

    A switch that is there at the start was left over, and is removed with a message: whoever starts a stage wants it to
    run. signalled: whether this process was asked to stop.
    """

    def __init__(self, folder: Path, signalled: Callable[[], bool]) -> None:
        self._first, self._signalled = is_first(), signalled
        self._stop, self._save, self._stopped = folder / "STOP", folder / "SAVE", folder / STOPPED
        if self._first:
            self._stopped.unlink(missing_ok=True)
            for path in (self._stop, self._save):
                if path.exists():
                    path.unlink(missing_ok=True)
                    log.warning("%s was there before this start: removed; make it anew to have its effect", path)

    def wish(self) -> Asked:
        """What this rank asks for: STOP on a signal or, on the first rank, a file; else SAVE on a file, or nothing."""
        if self._signalled() or (self._first and self._stop.exists()):
            return Asked.STOP
        return Asked.SAVE if self._first and self._save.exists() else Asked.NOTHING

    def honoured(self, leaving: bool) -> None:
        """Removes the switches, since their checkpoint is on the disk. leaving: whether the stage stops now."""
        if self._first:
            self._save.unlink(missing_ok=True)
            if leaving and self._stop.exists():
                self._stop.replace(self._stopped)

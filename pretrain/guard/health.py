"""Skips steps whose loss or gradient is not to be trusted, and goes back to a checkpoint when they keep coming.

Everything here is a function of what a checkpoint holds and of the steps since, so a stage that is killed and resumed
skips and rolls back where one that was left alone does.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from pretrain.config import Guard
from pretrain.errors import UserError
from pretrain.runtime.ranks import is_first

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    """What a stage remembers of its steps.

    losses and grad_norms: those of the newest steps that were made. skipped: how many steps in a row, up to now, were
    not made.
    rollbacks: how often the stage went back. good: the step of the checkpoint to which it would go back, 0 for the
    beginning of the stage; a checkpoint that was made on request does not count, so that no request changes the run.
    """

    losses: tuple[float, ...] = ()
    grad_norms: tuple[float, ...] = ()
    skipped: int = 0
    rollbacks: int = 0
    good: int = 0

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Health:
        lists = {key: tuple(data.get(key, ())) for key in ("losses", "grad_norms")}
        return Health(**{**data, **lists})

    def trouble(self, loss: float, grad_norm: float, rules: Guard) -> str:
        """Why a step must not be made, empty if it may.

        A spike is recognised only after a whole window of steps, and only if their median is not 0.
        """
        for name, value, earlier, factor in (
            ("loss", loss, self.losses, rules.loss_spike),
            ("gradient norm", grad_norm, self.grad_norms, rules.grad_spike),
        ):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            usual = median(earlier) if factor and len(earlier) >= rules.window else 0.0
            if factor and value > factor * usual > 0:  # every loss is above a multiple of 0
                return f"the {name} is {value:.4g}, {value / usual:.3g} times the median of {len(earlier)} steps"
        return ""

    def after(self, loss: float, grad_norm: float, trouble: str, rules: Guard) -> Health:
        """The health after a step, which was made unless there is `trouble`."""
        if trouble:
            return replace(self, skipped=self.skipped + 1)
        newest = slice(-rules.window, None)
        losses, norms = (*self.losses, loss)[newest], (*self.grad_norms, grad_norm)[newest]
        return replace(self, losses=losses, grad_norms=norms, skipped=0)

    def saved(self, step: int) -> Health:
        """The health with a checkpoint of this step, as every run of the stage makes it."""
        return self if self.skipped else replace(self, good=step)

    def grown(self) -> Health:
        """The health after a growth event inside the stage, which changes what is usual."""
        return replace(self, losses=(), grad_norms=())


@dataclass(frozen=True)
class Rollback:
    """The way back to a good checkpoint: the stage starts from it with a later cursor, past the text that it left out.

    since: the last of the steps that are given up.
    """

    since: int
    cursor: Mapping[str, Any]
    health: Health

    @property
    def good(self) -> int:
        """The step to which it goes."""
        return self.health.good

    def health_at(self, checkpointed: Health) -> Health:
        """The health to go on with from the one that the checkpoint holds."""
        return replace(checkpointed, skipped=0, rollbacks=self.health.rollbacks + 1)


def roll_back(rules: Guard, step: int, cursor: Mapping[str, Any], health: Health, trouble: str) -> Rollback | None:
    """The way back after `rules.patience` skipped steps in a row, None before that.

    Raises UserError when the stage has gone back as often as it may.
    """
    if health.skipped < rules.patience:
        return None
    if health.rollbacks >= rules.rollbacks:
        raise UserError(
            f"{health.skipped} steps in a row up to step {step} could not be made ({trouble}), after "
            f"{health.rollbacks} rollbacks (guard.rollbacks): the training diverges. guard.jsonl in the stage's folder "
            "says what happened. Lower train.lr or lengthen its warm-up in a new run, or look at the text of the steps"
        )
    return Rollback(step, cursor, health)


def note(folder: Path, event: str, step: int, why: str, **details: int) -> None:
    """Say on the console what the guard did, and keep it in guard.jsonl in the stage's folder (rank 0)."""
    if is_first():
        log.warning("%s at step %d: %s", event, step, why)
        with (folder / "guard.jsonl").open("a", encoding="utf-8") as out:
            print(json.dumps({"time": time.time(), "step": step, "event": event, "why": why, **details}), file=out)

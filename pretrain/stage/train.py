"""The training loop of one stage, from top to bottom. What it does at each turn is in run.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from pretrain.checkpoint import is_done
from pretrain.checkpoint.commit import abandon
from pretrain.config import Curriculum, Stage
from pretrain.guard.health import Rollback
from pretrain.guard.switches import Asked, Switches
from pretrain.guard.watchdog import Watchdog
from pretrain.runtime.ranks import agreed, world_size
from pretrain.stage.learn import start_as_learned
from pretrain.stage.mirrored import bring_back, finish
from pretrain.stage.resolved import resolve
from pretrain.stage.run import Run

log = logging.getLogger(__name__)


def train(curriculum: Curriculum, stage: Stage, stop_requested: Callable[[], bool]) -> bool:
    """Train a stage until it ends (see Ending), or until a stop is requested; True when it is finished.

    Collective over the ranks of the stage. A stop is requested by `stop_requested` on any rank, or by a file: see
    Switches. Whatever happened before is found in the run folder: a stage that is done is left alone, one that was
    stopped goes on, one that never began grows from its parent.
    Raises what pretrain.event.plan.check would have raised before, and UserError for a checkpoint that cannot be read
    or written; nothing is overwritten then.
    """
    folder, mirror = curriculum.folder / stage.name, stage.checkpoint.mirror
    if mirror:
        agreed(partial(bring_back, curriculum, stage))
    finished = agreed(lambda: is_done(folder))
    if finished:
        log.info("%s is finished already", folder)
    else:
        finished = _watched(curriculum, stage, folder, stop_requested)
    if finished and mirror:
        agreed(
            partial(finish, folder, mirror)
        )  # all ranks wait: a scheduler ends a step soon after the first that leaves
    return finished


def _watched(curriculum: Curriculum, stage: Stage, folder: Path, stop_requested: Callable[[], bool]) -> bool:
    switches = Switches(folder, stop_requested)
    with Watchdog(folder, dist.get_rank(), stage.guard.hang) as watchdog:
        outcome = _train(curriculum, stage, folder, switches, watchdog)
        while isinstance(outcome, Rollback):
            outcome = _train(curriculum, stage, folder, switches, watchdog, outcome)
    return outcome


def _train(
    curriculum: Curriculum,
    stage: Stage,
    folder: Path,
    switches: Switches,
    watchdog: Watchdog,
    back: Rollback | None = None,
) -> bool | Rollback:
    """As `train`; or the way back to a good checkpoint, which the next call begins with."""
    watchdog.beat("start", 0)
    began = time.monotonic()
    resolved = resolve(curriculum, stage, world_size())
    if back:
        agreed(partial(abandon, folder / "checkpoints", back.good))
    started = start_as_learned(resolved, switches, watchdog)
    if started is None:  # asked to leave while it learned how to grow, or tried operators
        switches.honoured(leaving=True)
        return False
    engine, state = started
    if back:
        state = replace(state, cursor=back.cursor, health=back.health_at(state.health))
    with Run(resolved, watchdog, engine, state) as run:
        run.begin(began, back)
        while not run.finished():
            if run.patch_is_due():
                run.grow()
            trouble, asked = run.step(switches.wish)
            if trouble and not run.unfit and (back := run.way_back(trouble)):
                return back
            if run.validation_is_due():
                run.validate()
            finished = run.finished()
            leaving = finished or asked == Asked.STOP or bool(run.unfit)
            run.save_if_due(now=leaving or asked == Asked.SAVE)
            if leaving or asked:
                switches.honoured(leaving)
            if run.unfit and not finished:
                log.error("stopped: %s computed wrong gradients; go on without it", ", ".join(run.unfit))
                return False
            if leaving and not finished:
                log.info("stopped at step %d as requested; start the stage again to go on", run.state.progress.step)
                return False
    run.mark_done()
    return True

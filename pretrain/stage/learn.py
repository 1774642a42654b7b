"""A stage with `grow.learn`, which learns the maps of its growth event first; how, is pretrain.event.learn."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pretrain.checkpoint import Reader, find
from pretrain.config import Stage
from pretrain.engine.engine import Engine
from pretrain.event.learn import Learned, Learning
from pretrain.event.plan import finished
from pretrain.guard.switches import Asked, Switches
from pretrain.guard.watchdog import Watchdog
from pretrain.runtime.comm import Comm
from pretrain.runtime.ranks import agreed, is_first
from pretrain.schedule.ending import keep_decision
from pretrain.stage.resolved import Resolved
from pretrain.stage.trial import start_with_the_best
from pretrain.state import State

log = logging.getLogger(__name__)
FILE = "factors.safetensors"


def start_as_learned(resolved: Resolved, switches: Switches, watchdog: Watchdog) -> tuple[Engine, State] | None:
    """`start_with_the_best`; a stage with `grow.learn` begins with the maps that are learned now. None when a stop was
    asked for before it was known how to grow (collective).

    Rank 0 learns, the others wait. A start after a kill goes on after the last steps that were kept, to the same maps.
    The factors lie in the stage's folder, and what was gained by them in decisions/learned.json.
    """
    curriculum, stage, folder = resolved.curriculum, resolved.stage, resolved.folder
    parent = curriculum.parent(stage)
    if (
        not stage.grow.learn.steps
        or parent is None
        or agreed(lambda: find(folder / "checkpoints").manifest is not None)
    ):
        return start_with_the_best(resolved, switches, watchdog)
    began = time.monotonic()
    learned = _learned(resolved, parent, switches, watchdog)
    if learned is None:
        return None
    if is_first():
        log.info("learned how to grow: held-out loss %(start).4f of copies, %(learned).4f", learned.held_out)
        record = {"decision": "grow", "by": "learn", "grow": learned.policy, "held_out": learned.held_out}
        keep_decision(folder, "learned", {**record, "flops": learned.flops, "seconds": time.monotonic() - began})
    started = start_with_the_best(resolved.growing(stage.grow.mapped(learned.policy)), switches, watchdog)
    if started is None:
        return None
    engine, state = started
    progress = replace(state.progress, flops=state.progress.flops + learned.flops)
    return engine, replace(state, progress=progress)


def _learned(resolved: Resolved, parent: Stage, switches: Switches, watchdog: Watchdog) -> Learned | None:
    """What rank 0 has learned; None when a stop is asked for."""
    curriculum, stage, target = resolved.curriculum, resolved.stage, resolved.folder / FILE
    learning: Learning  # on rank 0
    with ExitStack() as opened:

        def begin() -> None:
            nonlocal learning
            reader = opened.enter_context(Reader(_checkpoint(resolved, parent)))
            learning = Learning(curriculum, stage, reader, target, stage.grow.learn)
            if done := learning.resume():
                log.info("learning how to grow: goes on after step %d", done)

        agreed(begin)
        while not agreed(lambda: learning.done):
            watchdog.beat("learning how to grow", 0)
            agreed(lambda: learning.step())
            if Comm().largest(switches.wish()) == Asked.STOP:
                agreed(lambda: learning.save())
                return None
        return agreed(lambda: learning.finish())


def _checkpoint(resolved: Resolved, parent: Stage) -> Path:
    finished(resolved.curriculum, parent)  # raises
    path = find(resolved.curriculum.folder / parent.name / "checkpoints").path
    assert path is not None
    return path

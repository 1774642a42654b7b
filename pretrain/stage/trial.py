"""LAG: growth operators tried for some steps before one of them is chosen (Karp et al. 2024, "Landscape-aware
growing: the power of a little LAG"): how good a way to grow is shows soon after the growth, but not at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from pretrain.checkpoint import find
from pretrain.config import compare_for_resume
from pretrain.engine.dropout import step_key
from pretrain.engine.engine import Engine
from pretrain.errors import UserError
from pretrain.event.plan import finished
from pretrain.guard.switches import Asked, Switches
from pretrain.guard.watchdog import Watchdog
from pretrain.runtime.ranks import agreed, is_first
from pretrain.schedule.curve import rates
from pretrain.schedule.ending import keep_decision, read_trial
from pretrain.stage.apply_schedule import Pacing
from pretrain.stage.resolved import Resolved
from pretrain.stage.start import start
from pretrain.stage.teach import flops_per_token, teach
from pretrain.stage.validate import Validation
from pretrain.state import State

log = logging.getLogger(__name__)


def start_with_the_best(resolved: Resolved, switches: Switches, watchdog: Watchdog) -> tuple[Engine, State] | None:
    """`start`, where a stage begins with `grow.trial` by the best of its candidates; None when a stop was asked for
    before that was known (collective).

    Every candidate is grown from the parent's checkpoint, in these processes, and trained on the same data for the same
    steps. What each has reached is kept in decisions/trial.json: a start after a kill goes on with those that are
    missing, and decides as this one would have.
    """
    curriculum, stage, folder = resolved.curriculum, resolved.given, resolved.folder
    trial, parent = stage.grow.trial, curriculum.parent(stage)
    if not trial.candidates or parent is None or agreed(lambda: find(folder / "checkpoints").manifest is not None):
        return start(resolved)
    manifest = agreed(lambda: finished(curriculum, parent))
    record = {"decision": "grow", "by": "trial", "steps": trial.steps, "parent": manifest.hash}
    record |= {"config": stage.to_dict()}
    tried = agreed(lambda: _tried_before(folder, record, len(trial.candidates)))
    for candidate in trial.candidates[len(tried) :]:
        result = _try(resolved.growing(stage.grow.tried(candidate)), switches, watchdog)
        if result is None:
            return None
        result["flops"] -= manifest.progress["flops"]
        tried = [*tried, {"candidate": dict(candidate), **result}]
        if is_first():
            log.info("trial of %s: held-out loss %s after %d steps", candidate, result["loss"], trial.steps)
            keep_decision(folder, "trial", {**record, "tried": tried, "chosen": None})
    losses = [inf if each["loss"] is None else each["loss"] for each in tried]
    chosen = losses.index(min(losses))
    if losses[chosen] == inf:
        raise UserError(f"stage {stage.name!r}: the loss of every candidate of grow.trial is infinite or no number")
    if is_first():
        log.info("chosen: %s", trial.candidates[chosen])
        keep_decision(folder, "trial", {**record, "tried": tried, "chosen": dict(trial.candidates[chosen])})
    engine, state = start(resolved.growing(stage.grow.tried(trial.candidates[chosen])))
    flops = state.progress.flops + sum(each["flops"] for each in tried)
    return engine, replace(state, progress=replace(state.progress, flops=flops))


def _tried_before(folder: Path, record: Mapping[str, Any], candidates: int) -> list[Mapping[str, Any]]:
    """What an earlier start of this very trial has tried."""
    earlier = read_trial(folder)
    if earlier is None or earlier["parent"] != record["parent"] or len(earlier["tried"]) > candidates:
        return []
    try:
        compare_for_resume(earlier["config"], record["config"])
    except UserError:
        return []
    return list(earlier["tried"])


def _try(resolved: Resolved, switches: Switches, watchdog: Watchdog) -> dict[str, Any] | None:
    """The held-out loss after the steps of a trial, its time and the run's FLOPs by then; None when a stop is asked
    for."""
    began = time.monotonic()
    stage, feed = resolved.stage, resolved.feed
    t = stage.train
    engine, state = start(resolved)
    state = Pacing.of(resolved.curriculum, stage, state.progress).set(engine, state)
    feed.seek(state.cursor)
    teach(resolved, engine)
    validation = Validation(engine, feed)
    at_once = validation()["validation_loss"]
    tokens = before = state.progress.tokens
    flops = state.progress.flops
    for step in range(stage.grow.trial.steps):
        watchdog.beat("trial", 0)
        batch = resolved.batch(tokens - before, engine.dp_rank, last=step + 1 == stage.grow.trial.steps)
        samples = t.batch_at(tokens - before)
        tokens += samples * t.seq_len
        key = step_key(stage.seed, stage.name, state.progress.step + step)
        result = engine.train_step(
            batch.samples, rates(state.births, stage, tokens), wish=switches.wish, key=key, remember=True
        )
        if result.wish == Asked.STOP:
            return None
        flops += flops_per_token(engine, samples, key, batch.seen) * samples * t.seq_len
    loss = validation()["validation_loss"]
    engine.free()
    losses = {"loss_at_once": at_once, "loss": loss}
    return {
        **{name: value if isfinite(value) else None for name, value in losses.items()},
        "flops": flops,
        "seconds": time.monotonic() - began,
    }

"""The training loop of one stage, from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from pretrain.checkpoint import Checkpointer, is_done, mark_done
from pretrain.checkpoint.comm import Comm
from pretrain.checkpoint.commit import abandon
from pretrain.config import Curriculum, Stage, to_yaml
from pretrain.distributed import agreed, layout_of, world_size
from pretrain.estimate.flops import training_flops
from pretrain.feed import open_feed
from pretrain.guard import Rollback, note, roll_back
from pretrain.metrics import Metrics
from pretrain.optim.schedule import rates
from pretrain.pacing import Pacing
from pretrain.start import finish_event, patch
from pretrain.state import State, boxes
from pretrain.switches import Asked, Switches
from pretrain.timing import Ending, keep_decision
from pretrain.trial import start_with_the_best
from pretrain.validate import Validation
from pretrain.watchdog import STEP, Watchdog

log = logging.getLogger(__name__)


def train(curriculum: Curriculum, stage: Stage, stop_requested: Callable[[], bool]) -> bool:
    """Train a stage until it ends (see Ending), or until a stop is requested; True when it is finished.

    Collective over the ranks of the stage. A stop is requested by `stop_requested` on any rank, or by a file: see
    Switches. Whatever happened before is found in the run folder: a stage that is done is left alone, one that was
    stopped goes on, one that never began grows from its parent.
    Raises what pretrain.planning.check would have raised before, and UserError for a checkpoint that cannot be read
    or written; nothing is overwritten then.
    """
    folder = curriculum.folder / stage.name
    if agreed(lambda: is_done(folder)):
        log.info("%s is finished already", folder)
        return True
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
    """As `train`; or the way back, which the next call begins with."""
    watchdog.beat("start", 0)
    layout = layout_of(stage, world_size())
    feed = open_feed(stage)
    resolved = feed.resolved()
    t = resolved.train

    began = time.monotonic()
    if back:
        agreed(partial(abandon, folder / "checkpoints", back.good))
    started = start_with_the_best(curriculum, stage, layout, feed, switches, watchdog)
    if started is None:
        return False
    engine, state = started
    if back:
        state = replace(state, cursor=back.cursor, health=back.health_at(state.health))
    validation = Validation(engine, feed)
    feed.seek(state.cursor)
    pacing = Pacing.of(curriculum, resolved, state.progress)
    state = pacing.set(engine, state)
    ending = Ending.of(curriculum, resolved, state.progress.tokens - state.progress.stage_tokens)

    keep = stage.checkpoint
    checkpointer = Checkpointer(folder / "checkpoints", None, keep.keep, keep.keep_every, asynchronous=True)
    comm = Comm()
    if comm.rank == 0:
        (folder / "config.yaml").write_text(to_yaml(stage))

    def save() -> None:
        now = replace(state, cursor=feed.cursor)
        checkpointer.save(
            state.progress.step,
            boxes(engine),
            now.fields(stage.name, stage.to_dict(), engine.adam.steps),
            spare=state.health.good,
        )

    with checkpointer, Metrics(folder, curriculum, resolved, state.progress, layout.world) as metrics:
        record = validation()
        if not state.progress.step:
            if state.parent:
                seconds = time.monotonic() - began
                state = finish_event(folder, state, record.get("validation_bits_per_byte"), seconds)
            metrics.log(state.progress, **record)
        if back:
            metrics.log(state.progress, rolled_back_from=back.since)
        while not ending.decision(state.progress):
            if _patch_is_due(resolved, state):
                watchdog.beat("growth event", state.progress.step)
                began = time.monotonic()
                before = record.get("validation_bits_per_byte")
                engine.free()
                engine, state = patch(curriculum, stage, layout, feed, state, before)
                state = pacing.set(engine, state)
                validation = Validation(engine, feed)
                feed.seek(state.cursor)
                record = validation()
                state = finish_event(folder, state, record.get("validation_bits_per_byte"), time.monotonic() - began)
                metrics.log(state.progress, **record)
            watchdog.beat(STEP, state.progress.step)
            clock = time.monotonic()
            done = state.progress.stage_tokens
            n = t.batch_at(done)
            batch_tokens = n * t.seq_len
            batch = feed.take(n, done / t.tokens, engine.dp_rank, layout.dp)
            lrs = rates(state.births, resolved, state.progress.tokens + batch_tokens)
            result = engine.train_step(batch.samples, lrs, partial(state.health.trouble, rules=stage.guard))
            flops = training_flops(state.arch, t.seq_len, frozen=engine.frozen.parts) * batch_tokens
            state = replace(
                state,
                progress=state.progress.after(tokens=batch_tokens, flops=flops, seconds=time.monotonic() - clock),
                health=state.health.after(result.loss, result.grad_norm, result.trouble, stage.guard),
            )
            values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": lrs[-1]}
            if len(lrs) > 1:
                values |= {f"lr_generation_{number}": lr for number, lr in enumerate(lrs)}
            if batch.bytes is not None:
                values["bits_per_byte"] = result.loss * batch_tokens / math.log(2) / batch.bytes
            if len(result.terms) > 1:
                values |= result.terms
            if result.trouble:
                values["skipped"] = 1
            metrics.step(state.progress, **values)
            if result.trouble:
                note(folder, "skipped", state.progress.step, result.trouble)
                if back := roll_back(stage.guard, state.progress.step, feed.cursor, state.health, result.trouble):
                    note(folder, "rollback", back.since, f"back to step {back.good}", to=back.good)
                    checkpointer.wait()
                    engine.free()
                    return back
            asked = switches.asked()
            if ending.spent(state.progress) or state.progress.step % t.eval_interval == 0:
                watchdog.beat("validation", state.progress.step)
                record = validation()
                metrics.log(state.progress, **record)
                state = replace(state, progress=state.progress.validated(record["validation_loss"]))
            finished = ending.decision(state.progress) is not None
            due = _patch_is_due(resolved, state)
            regular = due or state.progress.step % stage.checkpoint.interval == 0
            if regular:
                state = replace(state, health=state.health.saved(state.progress.step))
            if finished or asked or regular:
                watchdog.beat("checkpoint", state.progress.step)
                save()
            saved = checkpointer.wait() if finished or asked or due else checkpointer.poll()
            if saved:
                metrics.log(
                    state.progress, checkpoint_stall_seconds=saved.stall_seconds, checkpoint_seconds=saved.write_seconds
                )
            if finished or asked:
                switches.honoured(leaving=finished or asked == Asked.STOP)
            if asked == Asked.STOP and not finished:
                log.info("stopped at step %d as requested; start the stage again to go on", state.progress.step)
                return False

    if comm.rank == 0:
        keep_decision(folder, "end", ending.decision(state.progress))
        mark_done(folder, {**vars(state.progress), **record})
    dist.barrier()
    return True


def _patch_is_due(stage: Stage, state: State) -> bool:
    """Whether the stage has fewer layers than its patches give it by now."""
    passed = sum(patch.at * stage.train.tokens <= state.progress.stage_tokens for patch in stage.patches)
    return state.arch.layers < stage.model.layers + passed

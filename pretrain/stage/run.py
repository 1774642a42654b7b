"""A stage while it trains: what the training loop does at each turn."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from growth import Box
from growth.describe import describe_mup
from pretrain.checkpoint import Checkpointer, ManifestFields, mark_done
from pretrain.config import to_yaml
from pretrain.config.checks import due
from pretrain.engine import remembered
from pretrain.engine.dropout import step_key
from pretrain.engine.engine import Engine
from pretrain.engine.shards import boxes
from pretrain.errors import UserError
from pretrain.event.grow import finish_event, grow
from pretrain.event.plan import of_patch
from pretrain.guard.health import Rollback, note, roll_back
from pretrain.guard.recheck import suspect
from pretrain.guard.watchdog import STEP, Watchdog
from pretrain.judge.beside import Beside
from pretrain.runtime import startup
from pretrain.runtime.ranks import agreed, is_first
from pretrain.schedule.curve import rates
from pretrain.schedule.ending import Ending, keep_decision
from pretrain.stage import trained
from pretrain.stage.apply_schedule import Pacing
from pretrain.stage.metrics import METRICS, Metrics, judged
from pretrain.stage.mirrored import Mirroring
from pretrain.stage.moved import groups, moved
from pretrain.stage.resolved import Resolved
from pretrain.stage.teach import flops_per_token, teach
from pretrain.stage.validate import Validation
from pretrain.stage.write import forget, is_due, write
from pretrain.state import State

log = logging.getLogger(__name__)


class Run:
    """The engine of a stage and where it is. Every method is collective over the ranks of the stage.

    As a context manager it writes metrics and, in the background, checkpoints; on leaving, what was begun is finished.
    """

    engine: Engine
    state: State
    validation: Validation

    def __init__(self, resolved: Resolved, watchdog: Watchdog, engine: Engine, state: State) -> None:
        self.resolved, self.watchdog = resolved, watchdog
        self.given, self.stage, self.feed, self.folder = resolved.given, resolved.stage, resolved.feed, resolved.folder
        curriculum, given, progress = resolved.curriculum, resolved.given, state.progress
        self.pacing = Pacing.of(curriculum, self.stage, progress)
        self.ending = Ending.of(curriculum, self.stage, progress.tokens - progress.stage_tokens)
        self._drive(engine, state)
        self._turn = time.monotonic()  # when the last turn of the loop ended
        self.unfit: list[str] = []  # hosts that have computed wrong gradients, and must not go on
        if given.guard.recheck and torch.cuda.is_available() and not given.train.deterministic:
            raise UserError("guard.recheck compares bit for bit: set train.deterministic too, or guard.recheck: 0")
        self._written = False  # whether the last step found that all ranks have written what was being saved
        self.record: dict[str, float] = {}  # of the newest validation since the start
        keep = given.checkpoint
        folder = self.folder / "checkpoints"
        self.checkpointer = Checkpointer(folder, None, keep.keep, keep.keep_every, asynchronous=True)
        if is_first():
            (self.folder / "config.yaml").write_text(to_yaml(given))
            forget(self.folder, progress.step)
        self.metrics = Metrics(self.folder, curriculum, self.stage, progress, resolved.layout.world)
        self.beside = None
        if is_first() and given.eval.tasks:
            self.beside = Beside(self.folder, given, judged(self.folder / METRICS), progress.step)
        self.mirroring = Mirroring(self.folder, keep.mirror) if is_first() and keep.mirror else None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: Any) -> None:
        self.metrics.__exit__(*error)
        self.checkpointer.close()

    def begin(self, began: float, back: Rollback | None) -> None:
        """Measure a model that has made no step yet, and finish its growth event when it has just grown.

        began: when its start did, by the monotonic clock, in seconds. One that resumes was measured when it was saved.
        """
        startup.through("reading, growing")
        if not self.state.progress.step:
            self.record = self.validation()
            startup.through("validation")
            if self.state.parent:
                self._finish_event(began)
            self.metrics.log(self.state.progress, **self._measured())
        self._fields().frozen()  # what could not be saved is not trained
        if is_first():
            known = [group for group, _ in groups(self.state, self.stage, self.engine.frozen)]
            trained.keep(self.folder, known)
            log.info(trained.describe(known))
        if self.given.eval.tasks and self.state.parent and not self.state.progress.step:
            self.save_if_due(now=False)  # what the growth event has done is judged too
        if back:
            self.metrics.log(self.state.progress, rolled_back_from=back.since)
        self._turn = _idle()

    def grow(self) -> None:
        """The growth event of a patch: another engine in the same processes, its weights through the store."""
        with self._apart():
            step, began = self.state.progress.step, time.monotonic()
            self.watchdog.beat("validation", step)
            # Of this step: the newest record may be of an earlier one, and is not what a resume here would have.
            before = self.validation().get("validation_bits_per_byte")
            self.watchdog.beat("growth event", step)
            self.engine.free()
            growth = of_patch(self.resolved.curriculum, self.stage, self.state, before)
            layout = self.resolved.layout.resized(growth.plan.new, self.stage.train.seq_len)
            engine, state = grow(growth, self.stage, layout, self.feed)
            # After a rollback neither is what the checkpoint holds.
            self._drive(engine, replace(state, cursor=self.feed.cursor, health=self.state.health.grown()))
            self.record = self.validation()
            self._finish_event(began)
            self._fields().frozen()
            self.metrics.log(self.state.progress, **self._measured())

    def step(self, wish: Callable[[], int]) -> tuple[str, int]:
        """One optimizer step; or the trouble for which it was not made. And what is asked of the stage: the largest of
        all ranks' wishes."""
        self.watchdog.beat(STEP, self.state.progress.step)
        state, t, rules = self.state, self.stage.train, self.stage.guard
        done = state.progress.stage_tokens
        tokens = t.batch_at(done) * t.seq_len
        batch = self.resolved.batch(done, self.engine.dp_rank, last=done + tokens >= t.tokens)
        lrs = rates(state.births, self.stage, state.progress.tokens + tokens)
        again = bool(rules.recheck) and (state.progress.step + 1) % rules.recheck == 0
        veto = partial(state.health.trouble, rules=rules)
        writing = partial(getattr, self.checkpointer, "writing")
        key = step_key(self.stage.seed, self.stage.name, state.progress.step)
        flops = flops_per_token(self.engine, tokens // t.seq_len, key, batch.seen) * tokens
        result = self.engine.train_step(batch.samples, lrs, veto, wish, writing, recheck=again, key=key, remember=True)
        self._written = not result.writing
        if self.engine.average and not result.trouble:
            self.engine.average.follow(t.average.share(tokens))
        before, self._turn = self._turn, time.monotonic()
        self.state = replace(
            state,
            progress=state.progress.after(tokens=tokens, flops=flops, seconds=self._turn - before),
            health=state.health.after(result.loss, result.grad_norm, result.trouble, rules),
        )
        values = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": lrs[-1]}
        if len(lrs) > 1:
            values |= {f"lr_generation_{number}": lr for number, lr in enumerate(lrs)}
        words = result.terms.get(self.engine.family.losses[0].name)
        if batch.bytes is not None and words is not None:
            labels = tokens if batch.labels is None else batch.labels
            values["bits_per_byte"] = words * labels / math.log(2) / batch.bytes
        values |= {name: mean for name, mean in result.terms.items() if name not in values}
        values |= self.engine.spans.figures() if self.engine.spans else {}
        values |= {f"share_{name}": share for name, share in batch.shares.items()}
        if result.trouble:
            values["skipped"] = 1
        self.metrics.step(self.state.progress, **values)
        startup.finish(self.folder, self.state.progress.step)
        if result.trouble:
            note(self.folder, "skipped", self.state.progress.step, result.trouble)
        if result.unlike:
            self.unfit = agreed(lambda: suspect(self.folder, result.unlike))
        return result.trouble, result.wish

    def way_back(self, trouble: str) -> Rollback | None:
        """To the newest good checkpoint, after too many steps in a row that were not made; this run is then over."""
        step = self.state.progress.step
        back = roll_back(self.stage.guard, step, self.feed.cursor, self.state.health, trouble)
        if back:
            note(self.folder, "rollback", back.since, f"back to step {back.good}", to=back.good)
            self.checkpointer.wait()
            self.engine.free()
        return back

    def finished(self) -> bool:
        """Whether the stage ends here."""
        return self.ending.decision(self.state.progress) is not None

    def patch_is_due(self) -> bool:
        """Whether the stage has fewer layers than its patches give it by now."""
        tokens, done = self.stage.train.tokens, self.state.progress.stage_tokens
        passed = sum(due(patch, tokens) <= done for patch in self.stage.patches)
        return self.state.arch.depth < self.stage.model.depth + passed

    def validation_is_due(self) -> bool:
        """At every interval, and when the tokens of the stage are spent."""
        progress = self.state.progress
        return self.ending.spent(progress) or progress.step % self.stage.train.eval_interval == 0

    def validate(self) -> None:
        """Measure the loss on held-out text."""
        self.watchdog.beat("validation", self.state.progress.step)
        progress = self.state.progress
        with self._apart():
            self.record = self.validation()
            if is_due(self.feed, progress, self.ending.spent(progress)):
                write(self.engine, self.feed, progress, self.folder)
        self.metrics.log(progress, **self._measured())
        self.state = replace(self.state, progress=progress.validated(self.record["validation_loss"]))

    def _measured(self) -> dict[str, float]:
        """The newest validation, and how far each head sees, where heads have spans."""
        return self.record | (self.engine.spans.of_heads() if self.engine.spans else {})

    def save_if_due(self, now: bool) -> None:
        """Save, at an interval in the background; `now`, or before a patch: it is on the disk on return."""
        step, patching = self.state.progress.step, self.patch_is_due()
        regular = patching or step % self.given.checkpoint.interval == 0
        saved = None
        if regular:
            self.state = replace(self.state, health=self.state.health.saved(step))
        if now or regular:
            self.watchdog.beat("checkpoint", step)
            with self._apart():
                saved = self.checkpointer.save(
                    step, self._boxes(), self._fields(), spare=partial(self._spare, self.state.health.good)
                )
                saved = (self.checkpointer.wait() if now or patching else None) or saved
            self._written = False  # the last step knew nothing of this one
        saved = saved or self.checkpointer.poll(self._written)
        if saved:
            seconds = {"checkpoint_stall_seconds": saved.stall_seconds, "checkpoint_seconds": saved.write_seconds}
            self.metrics.log(self.state.progress, **seconds)
        if self.beside and (saved or step % self.given.log.interval == 0):
            self._judge(begin=saved is not None)
        if self.mirroring and (saved or step % self.given.log.interval == 0):
            if news := self.mirroring.news():
                self.metrics.log(self.state.progress, **news)
            if saved:
                self.mirroring.begin()

    def _spare(self, good: int) -> set[int]:
        """Steps whose checkpoints stay longer than others: the way back, and what is still to be evaluated, or sent."""
        return {good}.union(*(task.spared() for task in (self.beside, self.mirroring) if task))

    def _judge(self, begin: bool) -> None:
        """Takes over what evaluations there are by now, at the places of their checkpoints; begins those that wait."""
        assert self.beside
        for record in self.beside.news():
            place = {key: getattr(record, key) for key in ("step", "tokens", "flops", "seconds")}
            self.metrics.log(replace(self.state.progress, **place), **record.figures())
        if begin:
            self.beside.begin()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What is done in here is not training: its time is in no step. That of what was queued before is."""
        began = _idle()
        yield
        self._turn += _idle() - began

    def _boxes(self) -> dict[str, list[tuple[str, Box, torch.Tensor]]]:
        """What this rank writes of a checkpoint, by kind."""
        return {**boxes(self.engine), **remembered.boxes(self.engine)}

    def _fields(self) -> ManifestFields:
        """What a checkpoint says besides its tensors."""
        state = replace(self.state, cursor=self.feed.cursor)
        fields = state.fields(self.given.name, self.given.to_dict(), self.engine.adam.steps)
        return replace(fields, shapes={**fields.shapes, **remembered.shapes(self.engine)})

    def mark_done(self) -> None:
        """The stage is finished: why it ended, and the marker that later stages wait for."""
        self.watchdog.beat("validation", self.state.progress.step)
        if self.state.parent and (known := moved(self.engine, self.state, self.stage)):
            trained.keep(self.folder, known)
            log.info(trained.describe(known))
        self.record = self.record or self.validation()  # not measured yet: it was killed between its end and this
        agreed(self._mark_done)  # no rank leaves before the marker is there

    def _mark_done(self) -> None:
        layers, planned = self.state.arch.depth, self.stage.at_end().depth
        if layers < planned:
            late = "it was over before the last of them were due"
            log.warning("%s ends with %d layers, and its patches make %d: %s", self.given.name, layers, planned, late)
        keep_decision(self.folder, "end", self.ending.decision(self.state.progress))
        mark_done(self.folder, {**vars(self.state.progress), **self.record})
        if self.beside:
            self.beside.begin()  # of the last checkpoint

    def _drive(self, engine: Engine, state: State) -> None:
        """Go on with this engine, from here."""
        self.engine = engine
        if is_first() and (mup := self.stage.train.mup.base()):
            log.info("%s", describe_mup(mup, state.arch))
        self.state = self.pacing.set(engine, state)
        teach(self.resolved, engine)
        self.validation = Validation(engine, self.feed)
        self.feed.seek(state.cursor)

    def _finish_event(self, began: float) -> None:
        seconds = time.monotonic() - began
        self.state = finish_event(self.folder, self.state, self.record.get("validation_bits_per_byte"), seconds)


def _idle() -> float:
    """The monotonic clock, in seconds, when the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()

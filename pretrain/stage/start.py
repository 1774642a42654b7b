"""How a stage starts: resumed from its own checkpoint, grown from its parent's, or drawn from nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from growth import Architecture, identity
from growth.stream import Stream
from pretrain.checkpoint import CorruptCheckpoint, Found, Reader, find, restore
from pretrain.config import compare_for_resume
from pretrain.engine.build import engine_of
from pretrain.engine.engine import Engine
from pretrain.engine.remembered import recall
from pretrain.engine.shards import fill, publish
from pretrain.event.grow import grow
from pretrain.event.plan import of_stage, plan_of
from pretrain.runtime.ranks import agreed, is_first
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.stage.resolved import Resolved
from pretrain.state import State

log = logging.getLogger(__name__)


def start(resolved: Resolved) -> tuple[Engine, State]:
    """An engine with every value in place, and the state it is in (collective).

    Raises UserError when the parent has not finished or has no checkpoint that verifies, or when a resume would
    change what the run is; GrowthError when the plan is impossible or a preserving one does not preserve.
    """
    curriculum, stage = resolved.curriculum, resolved.stage
    own = resolved.folder / "checkpoints"
    newest = agreed(lambda: find(own))
    if newest.manifest is not None:
        return _resume(own, newest, resolved)
    if newest.skipped:
        restore(own, lambda _: None)  # raises: there are checkpoints, and none can be loaded
    parent = curriculum.parent(stage)
    if parent is None:
        return _begin(resolved)
    growth = of_stage(curriculum, stage, parent, resolved.feed.tokenizer)
    return grow(growth, stage, resolved.layout, resolved.feed)


def _resume(root: Path, newest: Found, resolved: Resolved) -> tuple[Engine, State]:
    """From the newest checkpoint that can be read; newest: the same, as far as is known."""
    assert newest.manifest is not None
    arch, bad = Architecture.from_json(newest.manifest.architecture), dict(newest.skipped)
    layout = resolved.layout
    if resolved.stage.patches:  # some of them may have been applied
        layout = layout.resized(arch, resolved.stage.train.seq_len)
    engine = engine_of(arch, layout, resolved.stage.train)

    def load(reader: Reader) -> State:
        if reader.path in bad:
            raise CorruptCheckpoint(bad[reader.path])
        compare_for_resume(reader.manifest.config, resolved.given.to_dict())
        state = State.from_reader(reader)
        if state.arch == arch:
            plan = identity(arch)
            fill(engine, plan, reader)
            recall(engine, reader, Stream.of(plan), resolved.stage.train.batch_at(state.progress.stage_tokens))
        return state

    restored = restore(root, load)
    state = restored.loaded
    assert state is not None
    if state.arch != arch:
        # An older one, from before a patch, which all ranks have agreed on and opened. They make its engine together,
        # here: in `load` the others would wait for a rank that cannot open it.
        engine.free()
        return _resume(root, restored, resolved)
    publish(engine, state)
    if is_first():
        restored.warn()
        log.info("resumed from %s", restored.path)
    return engine, state


def _begin(resolved: Resolved) -> tuple[Engine, State]:
    plan = plan_of(resolved.curriculum, resolved.stage, None, resolved.feed.tokenizer)
    engine = engine_of(plan.new, resolved.layout, resolved.stage.train)
    state = State(plan.new, plan.generations(), (Birth(0, resolved.stage.name, 0),), Progress(), None)
    fill(engine, plan, None)
    publish(engine, state)
    return engine, state

"""What a stage of a dry run starts from: its parent's state at the end, in a checkpoint of zeros."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pretrain.checkpoint import Manifest, mark_done
from pretrain.checkpoint.find import step_folder
from pretrain.checkpoint.places import TensorEntry
from pretrain.config import Curriculum, Stage
from pretrain.dryrun.feed import Nothing
from pretrain.dryrun.sparse import sparse_checkpoint
from pretrain.event.plan import grown, patch_plan, patched, plan_of
from pretrain.schedule.curve import Birth, paced
from pretrain.schedule.progress import Progress
from pretrain.stage.apply_schedule import Pacing
from pretrain.state import State


def write(curriculum: Curriculum, stage: Stage, state: State) -> None:
    """A checkpoint of a stage in this state."""
    folder = step_folder(curriculum.folder / stage.name / "checkpoints", state.progress.step)
    steps = [birth.adam_step for birth in state.births]
    sparse_checkpoint(folder, state.fields(stage.name, stage.to_dict(), steps), state.progress.step)


def finish(curriculum: Curriculum, stage: Stage) -> None:
    """A stage that is finished, with the checkpoint of its end."""
    write(curriculum, stage, at_end(curriculum, stage))
    mark_done(curriculum.folder / stage.name, {"validation_bits_per_byte": 1.0})


def at_end(curriculum: Curriculum, stage: Stage) -> State:
    """The state in which a stage would end, after all that were before it."""
    parent = curriculum.parent(stage)
    feed = Nothing(stage)
    if parent is None:
        plan = plan_of(curriculum, stage, None, None)
        state = State(plan.new, plan.generations(), (Birth(0, stage.name, 0),), Progress(), None)
    else:
        reader = _reader(parent, at_end(curriculum, parent))
        plan = plan_of(curriculum, stage, reader.manifest, feed.tokenizer)
        state = grown(reader, plan, stage)
    state = _trained(curriculum, stage, state, 1 / (1 + len(stage.patches)))
    for number in range(len(stage.patches)):
        plan = patch_plan(curriculum, stage, number, state.arch)
        state = patched(_reader(stage, state), plan, stage)
        state = _trained(curriculum, stage, state, 1 / (1 + len(stage.patches)))
    return state


def _trained(curriculum: Curriculum, stage: Stage, state: State, share: float) -> State:
    """After a share of the stage's tokens."""
    progress, pacing = state.progress, Pacing.of(curriculum, stage, state.progress)
    births = paced(state.births, stage, not progress.step, progress.tokens, pacing.curve_ends)
    tokens, steps = round(share * stage.train.tokens), max(1, round(share * stage.train.steps()))
    progress = replace(
        progress,
        step=progress.step + steps,
        stage_tokens=progress.stage_tokens + tokens,
        tokens=progress.tokens + tokens,
    )
    births = tuple(replace(birth, adam_step=birth.adam_step + steps) for birth in births)
    return replace(state, progress=progress, births=births)


def _reader(stage: Stage, state: State) -> Any:
    """What the planning of a growth needs to know of a checkpoint: its path and its manifest, without tensors."""
    fields = state.fields(stage.name, stage.to_dict(), [birth.adam_step for birth in state.births])
    tensors = {name: TensorEntry(tuple(shape), {}) for name, shape in fields.shapes.items()}
    manifest = Manifest(step=state.progress.step, tensors=tensors, files={}, hash="", **fields.frozen().description())
    return SimpleNamespace(path=Path(), manifest=manifest)

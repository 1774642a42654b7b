"""How a stage will start, worked out without starting anything: its architecture, its growth plan, its first state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import growth
from growth import Architecture, Plan
from pretrain import families
from pretrain.checkpoint import Manifest, Reader, find, is_done, model_of
from pretrain.config import Curriculum, Stage, compare_for_resume, factor_files
from pretrain.config.layouts import layout_of
from pretrain.errors import UserError
from pretrain.event.condense import condensed
from pretrain.event.source import Source
from pretrain.event.teacher import taught
from pretrain.families.common.tokenizers import Tokenizer
from pretrain.families.text import open_feed
from pretrain.guard.health import Health
from pretrain.judge import harness
from pretrain.runtime.files import bits_per_byte
from pretrain.runtime.ranks import agreed
from pretrain.schedule.curve import Birth
from pretrain.state import State


@dataclass(frozen=True)
class Growth:
    """A growth event that is to happen: what grows, how, and what the model before was known to reach.

    state_of: the state of the grown model, from the reader of its parent's checkpoint, the plan and the stage.
    bits_per_byte: of the model before, where it was measured.
    """

    plan: Plan
    source: Source
    state_of: Callable[[Reader, Plan, Stage], State]
    bits_per_byte: float | None


def of_stage(curriculum: Curriculum, stage: Stage, parent: Stage, tokenizer: Tokenizer | None) -> Growth:
    """The event with which a stage begins (collective). Raises as `finished` and `plan_of`."""
    plan = plan_of(curriculum, stage, agreed(lambda: finished(curriculum, parent)), tokenizer)
    assert plan.old is not None
    before = agreed(lambda: bits_per_byte(curriculum.folder / parent.name))
    return Growth(plan, Source(_checkpoints(curriculum, parent), plan.old), grown, before)


def of_patch(curriculum: Curriculum, stage: Stage, state: State, bits_per_byte: float | None) -> Growth:
    """That of the stage's next patch, from the checkpoint of this state."""
    plan = patch_plan(curriculum, stage, state.arch.depth - stage.model.depth, state.arch)
    source = Source(_checkpoints(curriculum, stage), state.arch, state.progress.step)
    return Growth(plan, source, patched, bits_per_byte)


def _checkpoints(curriculum: Curriculum, stage: Stage) -> Path:
    return curriculum.folder / stage.name / "checkpoints"


def check(curriculum: Curriculum, stage: Stage, world: int, ahead: Collection[str] = ()) -> None:
    """Raise, before anything slow starts, what is known to be wrong with a stage on `world` ranks; writes nothing.

    ahead: names of stages that will have finished by then; a parent among them is taken as the file declares it.
    Raises UserError for ranks that do not fit, a corpus, a parent or a teacher that is not there, a corpus unlike the
    parent's, a teacher that does not fit, tasks that cannot be run, a vocabulary that cannot be cut, held-out text of
    which nothing can be measured and a resume that would change the run; GrowthError for a growth that is impossible.
    """
    if is_done(curriculum.folder / stage.name):
        return
    layout_of(stage, world)
    feed = open_feed(stage)
    try:
        feed.held_out(1)
    except UserError as error:
        raise UserError(f"{curriculum.path}: stage {stage.name!r}: {error}") from None
    _check_tasks(curriculum, stage)
    stage = taught(curriculum, stage, feed.tokenizer, ahead)
    own = find(curriculum.folder / stage.name / "checkpoints").manifest
    if own is not None:
        compare_for_resume(own.config, stage.to_dict())
        return
    parent = curriculum.parent(stage)
    if parent and parent.name in ahead and not is_done(curriculum.folder / parent.name):
        before = open_feed(parent)
        before.seek(None)
        feed.seek(before.cursor)
        _between(curriculum, stage, parent.grown(), feed.tokenizer)
    else:
        manifest = finished(curriculum, parent) if parent else None
        if manifest:
            feed.seek(manifest.cursor)
        plan_of(curriculum, stage, manifest, feed.tokenizer)


def _check_tasks(curriculum: Curriculum, stage: Stage) -> None:
    if not stage.eval.tasks:
        return
    where = f"{curriculum.path}: stage {stage.name!r}: eval.tasks"
    form = families.of(stage.model.family).hf
    if form is None or not form.generates:
        raise UserError(f"{where}: tasks of lm-eval need a model that writes text, which {stage.model.family} does not")
    if families.of(stage.model.family).prompt:
        raise UserError(
            f"{where}: tasks of lm-eval score the next token, and {stage.model.family} predicts several at once, "
            "all of them further ahead; leave them out"
        )
    harness.require()
    harness.check_files(stage.eval.tasks, where)


def finished(curriculum: Curriculum, parent: Stage) -> Manifest:
    """The manifest of a finished stage's newest checkpoint; UserError when there is none."""
    folder = curriculum.folder / parent.name
    command = f"bash slurm/stage.sh {curriculum.path} {parent.name}"
    if not is_done(folder):
        raise UserError(
            f"{folder}: the parent stage {parent.name!r} has not finished (no DONE): run it first, {command}"
        )
    newest = find(folder / "checkpoints")
    if newest.path is None or newest.manifest is None:
        raise UserError(
            f"{folder / 'checkpoints'}: the parent stage {parent.name!r} has no checkpoint that verifies: "
            f"restore it, or move {folder} away and run it again, {command}"
        )
    model_of(newest.manifest, newest.path)
    return newest.manifest


def plan_of(curriculum: Curriculum, stage: Stage, parent: Manifest | None, tokenizer: Tokenizer | None) -> Plan:
    """The plan with which a stage starts: from its parent's checkpoint, or from nothing.

    tokenizer: of the stage's corpus; without one (offline) the vocabulary cannot grow. Raises GrowthError for a plan
    that is impossible, UserError when the rows of the parent's vocabulary are not in the order of the tokenizer.
    """
    if parent is None:
        seed, mup = _seed(curriculum, stage), stage.train.mup.base()
        return growth.initial(stage.architecture(), seed, stage.model.init_std, mup)
    old = Architecture.from_json(parent.architecture)
    _check_vocabulary(parent.events, tokenizer, stage.model.vocab > old.sizes["vocab"])
    return _between(curriculum, stage, old, tokenizer)


def _between(curriculum: Curriculum, stage: Stage, old: Architecture, tokenizer: Tokenizer | None) -> Plan:
    new, seed = stage.architecture(), _seed(curriculum, stage)
    rows, wanted = old.sizes["vocab"], new.sizes["vocab"]
    pieces = None
    if wanted > rows:
        if tokenizer is None:
            raise UserError(f"the vocabulary grows from {rows} to {wanted}, which needs the tokenizer of the corpus")
        pieces = tokenizer.new_pieces(rows, wanted)
    policy = factor_files.filled(stage.grow.policy())
    mup = stage.train.mup.base()
    return growth.between(old, new, policy, seed=seed, init_std=stage.model.init_std, pieces=pieces, mup=mup)


def patch_plan(curriculum: Curriculum, stage: Stage, number: int, old: Architecture) -> Plan:
    """The plan of a stage's patch `number`, from the architecture before it."""
    patch = stage.patches[number]
    init = "random" if patch.source == "random" else "copy"
    policy = {"layers": {"operator": "insert", "at": [{"index": patch.index, "init": init}]}}
    new = old.replace({"layers": old.layers + 1})
    seed = _seed(curriculum, stage) + (number + 1 << 48)
    mup = stage.train.mup.base()
    return growth.between(old, new, policy, seed=seed, init_std=stage.model.init_std, mup=mup)


def _seed(curriculum: Curriculum, stage: Stage) -> int:
    return stage.seed + ([s.name for s in curriculum.stages].index(stage.name) << 32)


def _check_vocabulary(events: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None, grows: bool) -> None:
    """An imported model has the rows of its own tokenizer, in merge-age order or in that of their ids."""
    for event in events:
        if "imported" not in event:
            continue
        vocabulary = event["imported"]["vocabulary"]
        own, base = vocabulary["tokenizer"], tokenizer.base if tokenizer else None
        adds = base is not None and base.hash == own
        if vocabulary["order"] == "identity" and grows and not adds:
            raise UserError(
                f"the vocabulary of {event['imported']['name']} cannot grow: {vocabulary['reason']}, so its rows are "
                "in the order of their ids and not of their age; keep model.vocab as it is, or add tokens to its "
                "tokenizer: tools/prepare_data.py --add-tokens"
            )
        if tokenizer and own != tokenizer.hash and not adds:
            raise UserError(
                f"{tokenizer.name} is not the tokenizer of {event['imported']['name']}, the imported model that this "
                "stage grows from: prepare the corpus with tools/prepare_data.py --tokenizer and the tokenizer."
                f"{'json' if vocabulary['order'] == 'identity' else 'model'} that the model came with"
                + ("" if vocabulary["tokenizer"] else f" (it cannot serve here: {vocabulary['reason']})")
            )


def grown(reader: Reader, plan: Plan, stage: Stage) -> State:
    """The state of the parent's checkpoint, grown by the plan, at the start of a stage."""
    parent = {"path": str(reader.path), "hash": reader.manifest.hash}
    state = patched(reader, plan, stage)
    if stage.grow.condense:
        state = condensed(state, stage.train.betas[1])
    return replace(state, progress=state.progress.next_stage(), parent=parent, health=Health())


def patched(reader: Reader, plan: Plan, stage: Stage) -> State:
    """The state of a stage's own checkpoint, grown by the plan, inside the stage."""
    old = State.from_reader(reader)
    generations = plan.generations(old.generations)
    births = old.births
    if generations.count > old.generations.count:
        births = (*births, Birth(old.progress.tokens, stage.name, 0, births[0].adam_step))
    return replace(old, arch=plan.new, generations=generations, births=births, health=old.health.grown())

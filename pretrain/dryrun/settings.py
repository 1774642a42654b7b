"""A stage as a dry run has it: its layout, and a step of no more micro-batches than fill its pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pretrain import config
from pretrain.config import Curriculum, Learn, Log, Stage, checks
from pretrain.config.layouts import layout_of, ranks_of
from pretrain.layout import Layout
from pretrain.layout.layout import balanced_pipeline
from pretrain.layout.work import totals

GPUS_OF_A_NODE = 8
EPOCHS_ARE = 1000
"""Steps of a stage whose budget is in epochs of a corpus, which nobody reads here."""
FEW = 3
"""Micro-batches of a step without a pipeline, if it has so many."""
TRIED = 2
"""Steps of each candidate of a trial."""
NEVER = 1e-12
"""The probability with which a dry run leaves a block out, where there is one."""


@dataclass(frozen=True)
class Overrides:
    """What the command line has in place of a stage's own; None: as it is. chunks: of each pipeline rank."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    chunks: int | None = None
    micro_batch: int | None = None
    recompute: Literal["none", "selective", "full"] | None = None


def load(path: str | Path, name: str, overrides: Overrides) -> tuple[Curriculum, Stage, Layout]:
    """The curriculum without what a dry run has no use for (metrics, a budget in epochs), and one of its stages.

    train.layer_drop draws, and leaves nothing out: that needs most memory, and only so can the tensor-parallel ranks of
    one data-parallel rank stand for those of another.

    Raises UserError as config.load does, and for a layout that the model cannot have.
    """
    curriculum = config.load(path)
    index = [stage.name for stage in curriculum.stages].index(curriculum.stage(name).name)
    stages = list(map(_quiet, curriculum.stages))
    stage = _overridden(stages[index], overrides)
    stages[index] = stage = _short(stage)
    checks.raise_for(checks.problems(stages, only=index), f"{path}: stage {name!r}")
    return replace(curriculum, stages=tuple(stages)), stage, layout_of(stage, ranks_of(stage, GPUS_OF_A_NODE))


def micro_batches(layout: Layout) -> int:
    """Of a step, the fewest with which a pipeline of this layout is ever as full as it can be."""
    if layout.virtual > 1:
        return 2 * layout.pp
    return layout.pp + 1 if layout.pp > 1 else FEW


def _quiet(stage: Stage) -> Stage:
    train = stage.train
    if not train.tokens:
        train = replace(train, tokens=EPOCHS_ARE * train.global_batch * train.seq_len, epochs=0)
    if train.layer_drop.p:
        train = replace(train, layer_drop=replace(train.layer_drop, p=NEVER))
    trial = replace(stage.grow.trial, steps=min(TRIED, stage.grow.trial.steps))
    log = replace(stage.log, wandb=False, tensorboard=False, samples=Log().samples)
    data = stage.data.only(stage.data.folders[0])  # none is read
    return replace(stage, data=data, train=train, log=log, grow=replace(stage.grow, trial=trial, learn=Learn()))


def _short(stage: Stage) -> Stage:
    """With a step that just fills the pipeline, whatever its batch is."""
    train, p = stage.train, stage.parallel
    dp = ranks_of(stage, GPUS_OF_A_NODE) // (p.tp * p.pp)
    layout = Layout.make(totals(stage.architecture(), train.seq_len), pp=p.pp, dp=dp, pipeline=p.pipeline)
    samples, unit = train.micro_batch * dp, layout.batch_unit(train.micro_batch)
    n = max(1, min(train.global_batch // samples, micro_batches(layout)))
    batch = -(-n * samples // unit) * unit
    tokens = max(train.tokens, batch * train.seq_len)
    train = replace(train, tokens=tokens, global_batch=batch, ramp_from=0, ramp_by=0, ramp_tokens=0)
    return replace(stage, parallel=replace(p, dp=dp), train=train)


def _overridden(stage: Stage, o: Overrides) -> Stage:
    """Tensor parallelism that is asked for brings sequence parallelism."""
    parallel, train = stage.parallel, stage.train
    tp, pp = o.tp or parallel.tp, o.pp or parallel.pp
    pipeline = parallel.pipeline
    if o.pp or o.chunks:
        work = totals(stage.architecture(), stage.train.seq_len)
        pipeline = balanced_pipeline(work, pp * (o.chunks or 1)) if pp > 1 else None
    parallel = replace(
        parallel,
        tp=tp,
        pp=pp,
        dp=o.dp or parallel.dp,
        pipeline=pipeline,
        sequence_parallel=tp > 1 if o.tp else parallel.sequence_parallel,
    )
    train = replace(train, micro_batch=o.micro_batch or train.micro_batch, recompute=o.recompute or train.recompute)
    return replace(stage, parallel=parallel, train=train)

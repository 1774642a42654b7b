"""What a stage minimises beside the loss of its text, above all what a teacher says; and what a step costs then."""

from __future__ import annotations

from pretrain.engine.engine import Engine
from pretrain.engine.teacher import Teacher
from pretrain.engine.whole_teacher import WholeTeacher
from pretrain.estimate.flops import training_flops
from pretrain.estimate.teaching import Taught, teaching_flops
from pretrain.event.source import Source
from pretrain.event.teacher import teacher_of
from pretrain.runtime.ranks import agreed
from pretrain.stage.resolved import Resolved


def teach(resolved: Resolved, engine: Engine) -> None:
    """Give an engine the teacher of its stage, if there is one, and the penalty of its heads' spans (collective).

    Raises as `teacher_of`, and UserError for weights that cannot be read.
    """
    if resolved.given.distill.teacher:
        engine.learn_from(_teacher(resolved, engine))
    engine.penalise_spans(resolved.given.model.span.penalty)


def _teacher(resolved: Resolved, engine: Engine) -> Teacher:
    stage = resolved.given
    known = agreed(lambda: teacher_of(resolved.curriculum, stage))
    how = (engine.layout, engine.numerics, stage.distill, stage.train.seq_len)
    if known.whole:
        return WholeTeacher(known.whole, *how)
    teacher = Teacher(known.arch, *how)
    Source(known.path.parent, known.arch, path=known.path).restored(lambda reader: teacher.fill(reader.read))
    return teacher


def flops_per_token(engine: Engine, samples: int, key: int, seen: float | None) -> float:
    """Model FLOPs per token of the step with this key, of so many samples. seen: in their
    attention, see pretrain.families.common.text.Taken."""
    ran, teacher = engine.ran(samples, key), engine.teacher
    keys = engine.spans.keys(engine.seq_len, seen) if engine.spans else seen
    flops = training_flops(engine.arch, engine.seq_len, frozen=engine.frozen.parts, ran=ran, seen=keys)
    if teacher is None:
        return flops
    taught = Taught(teacher.arch, teacher.distill, teacher.whole)
    return flops + teaching_flops(engine.arch, taught, engine.seq_len, engine.layout.tp, seen)

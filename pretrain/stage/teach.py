"""The teacher of a stage, beside its engine, and what a step costs with one."""

from __future__ import annotations

from growth import Architecture
from pretrain.engine.engine import Engine
from pretrain.engine.teacher import Teacher
from pretrain.estimate.flops import training_flops
from pretrain.estimate.teaching import Taught, teaching_flops
from pretrain.event.source import Source
from pretrain.event.teacher import teacher_of
from pretrain.runtime.ranks import agreed
from pretrain.stage.resolved import Resolved


def teach(resolved: Resolved, engine: Engine) -> None:
    """Give an engine the teacher of its stage, if there is one (collective). Raises as `teacher_of`, and UserError for
    a checkpoint that cannot be read."""
    stage = resolved.given
    if not stage.distill.teacher:
        return
    path, manifest = agreed(lambda: teacher_of(resolved.curriculum, stage))
    arch = Architecture.from_json(manifest.architecture)
    teacher = Teacher(arch, engine.layout, engine.numerics, stage.distill, stage.train.seq_len)
    Source(path.parent, arch, path=path).restored(teacher.fill)
    engine.learn_from(teacher)


def flops_per_token(engine: Engine, samples: int, key: int) -> float:
    """Model FLOPs per token of the step with this key, of so many samples."""
    ran, teacher = engine.ran(samples, key), engine.teacher
    flops = training_flops(engine.arch, engine.seq_len, frozen=engine.frozen.parts, ran=ran)
    if teacher is None:
        return flops
    return flops + teaching_flops(engine.arch, Taught(teacher.arch, teacher.distill), engine.seq_len)

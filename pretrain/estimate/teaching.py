"""What a teacher adds to a stage: FLOPs of a step, and bytes of a rank."""

from __future__ import annotations

from pathlib import Path

from growth import Architecture
from pretrain.checkpoint import Manifest
from pretrain.checkpoint.locate import locate
from pretrain.config import Curriculum, Distill, Stage
from pretrain.config.teachers import held
from pretrain.estimate.flops import forward
from pretrain.layout.work import attending, entering


def teacher_of(curriculum: Curriculum, stage: Stage) -> Architecture | None:
    """What a stage holds of its teacher; None without one. Raises UserError for a folder without a checkpoint."""
    distill = stage.distill
    if not distill.teacher:
        return None
    if "/" in distill.teacher:
        path = locate(Path(distill.teacher), finished=True)
        return held(Architecture.from_json(Manifest.load(path).architecture), distill)
    return held(curriculum.stage(distill.teacher).at_end().architecture(), distill)


def teaching_flops(student: Architecture, teacher: Architecture, distill: Distill, seq_len: int) -> float:
    """Model FLOPs that a teacher, what is held of it, adds to a training step, per token: its forward pass, and the
    products of the relations, which of the student are differentiated too; less what of the student is neither computed
    nor differentiated where the labels have no share (as if it were trained)."""
    if distill.kind == "logits":
        return forward(teacher, seq_len).total / seq_len
    relations = 2 if distill.kind == "minilm" else 3
    widths = [arch.sizes["heads"] * arch.sizes["head_dim"] for arch in (teacher, student)]
    products = relations * 2 * seq_len * seq_len * (widths[0] + 3 * widths[1])
    unused = 0 if distill.share else 3 * (forward(student, seq_len).total - _seen(student, seq_len))
    return (_seen(teacher, seq_len) + products - unused) / seq_len


def _seen(arch: Architecture, seq_len: int) -> int:
    """FLOPs of a sample's forward pass up to the queries, keys and values of the last attention."""
    last = attending(arch)[-1]
    before = sum(block.total for block in forward(arch, seq_len).blocks[: last - 1])
    return before + entering(arch, arch.blocks[last - 1].kind, seq_len)

"""What a teacher adds to a stage: FLOPs of a step, and bytes of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from growth import Architecture
from pretrain.checkpoint import Manifest
from pretrain.checkpoint.locate import locate
from pretrain.config import Curriculum, Distill, Stage
from pretrain.config.teachers import held
from pretrain.estimate.flops import forward
from pretrain.families.hf_teachers import hf_teacher
from pretrain.layout.work import attending, entering


@dataclass(frozen=True)
class Taught:
    """What a stage holds of its teacher, and how it learns from it."""

    arch: Architecture
    distill: Distill
    whole: bool = False
    """Whether each tensor-parallel rank has the whole of it, as transformers computes it; else it is cut."""

    @property
    def relations(self) -> int:
        """How many relations are compared."""
        return {"minilm": 2, "minilm2": 3, "logits": 0}[self.distill.kind]

    @property
    def heads(self) -> int:
        """How many heads a relation has."""
        return self.arch.sizes["heads"] if self.distill.kind == "minilm" else self.distill.relation_heads

    def in_sight(self, student: Architecture) -> int:
        """How many of a student's blocks, at its end, are never computed again: from that on whose attention is
        compared."""
        return student.depth + 1 - attending(student)[-1] if self.relations else 0


def taught(curriculum: Curriculum, stage: Stage) -> Taught | None:
    """What the stage holds of its teacher; None without one. Raises UserError for a folder without a checkpoint."""
    distill = stage.distill
    if not distill.teacher:
        return None
    if "/" in distill.teacher:
        if folder := hf_teacher(Path(distill.teacher)):
            return Taught(held(folder.arch, distill), distill, whole=True)
        path = locate(Path(distill.teacher), finished=True)
        arch = Architecture.from_json(Manifest.load(path).architecture)
    else:
        arch = curriculum.stage(distill.teacher).grown()
    return Taught(held(arch, distill), distill)


def teaching_flops(student: Architecture, taught: Taught, seq_len: int, tp: int, seen: float | None = None) -> float:
    """Model FLOPs that a teacher adds to a training step, per token: its forward pass, on each of `tp` ranks that have
    the whole of it or on all together, and the products of the relations, which of the student are differentiated too;
    less what of the student is neither computed nor differentiated where the labels have no share (as if it were
    trained). seen: see pretrain.estimate.flops.forward."""
    teacher, times = taught.arch, tp if taught.whole else 1
    if taught.distill.kind == "logits":
        return times * forward(teacher, seq_len, seen=seen).total / seq_len
    widths = [arch.sizes["heads"] * arch.sizes["head_dim"] for arch in (teacher, student)]
    products = taught.relations * 2 * seq_len * seq_len * (widths[0] + 3 * widths[1])
    wanted = _up_to_attention(student, seq_len, seen)
    unused = 0 if taught.distill.share else 3 * (forward(student, seq_len, seen=seen).total - wanted)
    return (times * _up_to_attention(teacher, seq_len, seen) + products - unused) / seq_len


def _up_to_attention(arch: Architecture, seq_len: int, seen: float | None) -> int:
    """FLOPs of a sample's forward pass up to the queries, keys and values of the last attention."""
    last = attending(arch)[-1]
    before = sum(block.total for block in forward(arch, seq_len, seen=seen).blocks[: last - 1])
    return before + entering(arch, arch.blocks[last - 1].kind, seq_len)

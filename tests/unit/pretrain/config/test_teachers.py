"""Which teachers a stage may have, and what is said of one that does not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pretrain import config
from pretrain.config.teachers import held, misfits
from tests.unit.pretrain.config.test_config import message, write

NARROW = {"vocab": 300, "hidden": 32, "heads": 2, "head_dim": 16, "ffn": 64}
TAUGHT: dict[str, Any] = {
    "stages.1.from_scratch": True,
    "stages.1.model": {**NARROW, "layers": 2},
    "stages.1.distill": {"teacher": "one", "relation_heads": 16},
    "stages.1.parallel.tp": 2,
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({**TAUGHT, **changes})


def test_a_smaller_stage_learns_from_an_earlier_one(tmp_path: Path) -> None:
    """Not from the stage before only; and what is held of a teacher ends at the layer that is learned from."""
    curriculum = config.load(write(tmp_path, changed({"stages.1.distill.teacher_layer": 3})))
    teacher, student = curriculum.stages
    assert curriculum.parent(student) is None
    assert student.distill.kind == "minilm2"
    assert held(teacher.model.architecture(), student.distill).layers == 3
    config.load(write(tmp_path, changed({"stages.1.distill.teacher": "runs/other/large"})))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"distill.teacher": "three"}, "distill.teacher: 'three' is no earlier stage; name one of one, or a folder"),
        ({"distill.teacher": "two"}, "distill.teacher: 'two' is no earlier stage"),
        ({"distill": {"share": 0.5}}, "distill.teacher: missing"),
        ({"model.vocab": 301}, "distill.teacher: one has 300 pieces and this stage model.vocab 301"),
        ({"distill.kind": "minilm"}, "distill.kind: minilm compares head with head, and one has 4 of them"),
        ({"distill.relation_heads": 24}, "distill.relation_heads: 24 must divide heads x head_dim, 64 in one"),
        ({"distill.relation_heads": 1}, "and be a multiple of parallel.tp 2"),
        ({"distill.teacher_layer": 5}, "distill.teacher_layer: 5, and one has attention in its layers 1, 2, 3, 4"),
        (
            {"model": {**NARROW, "order": ""}},
            "distill.kind: minilm2 compares attention, and this stage has none; use logits",
        ),
        ({"parallel.pp": 2}, "parallel.pp: 2, but a teacher is computed as a whole"),
        (
            {"train.recompute": "full", "train.recompute_layers": 2},
            "train.recompute_layers: 2, but with distill.kind minilm2 the layers below the one that is compared",
        ),
        ({"model.span": {"max": 64}}, "distill.kind: minilm2 compares what every token says to every other"),
        ({"train.layer_drop": 0.2}, "train.layer_drop: 0.2 leaves the layer out at times"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    found = message(tmp_path, changed({f"stages.1.{key}": value for key, value in changes.items()}))
    assert expected in found


def test_a_teacher_that_cannot_be_cut_like_its_student(tmp_path: Path) -> None:
    changes = {"stages.0.model.heads": 3, "stages.0.model.hidden": 48}
    assert "one has 3 heads, which parallel.tp 2 does not divide" in message(tmp_path, changed(changes))


def test_a_teacher_that_every_rank_has_as_a_whole_is_not_cut(tmp_path: Path) -> None:
    teacher, student = config.load(write(tmp_path, changed({}))).stages
    odd = teacher.model.architecture().replace({"heads": 3, "kv_heads": 3})
    cut, whole = ("".join(misfits(odd, student, whole=whole)) for whole in (False, True))
    assert "has 3 heads, which parallel.tp 2 does not divide" in cut
    assert "does not divide" not in whole


def test_a_teacher_knows_the_segments_of_samples(tmp_path: Path) -> None:
    bert = {f"stages.{number}.model.family": "bert" for number in range(2)}
    teacher, student = config.load(write(tmp_path, changed(bert))).stages
    (problem,) = misfits(teacher.model.architecture().replace({"types": 1}), student)
    assert "one knows 1 kind(s) of segments, and samples have 2" in problem


def test_a_teacher_reads_samples_as_long_as_the_students(tmp_path: Path) -> None:
    both = {"stages.0.model.family": "gpt2", "stages.1.model.family": "gpt2", "stages.1.train.seq_len": 128}
    assert "one has 64 positions, fewer than train.seq_len 128" in message(tmp_path, changed(both))


def test_attention_by_distance_is_not_compared(tmp_path: Path) -> None:
    both = {f"stages.{number}.model.family": "transformer_xl" for number in range(2)}
    found = message(tmp_path, changed({**both, "stages.1.distill.kind": "minilm"}))
    assert "in a transformer_xl distances have a part in that; use minilm2, or logits" in found

"""Stages that learn from earlier ones, a teacher, its assistant and a pruned student: resumed, refused, exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pretrain.checkpoint import find, is_done
from pretrain.hf.export import export
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage, state

MODEL = {"vocab": 350, "hidden": 32, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 64, "head_dim": 8}
STAGES: list[dict[str, Any]] = [
    {"name": "teacher", "model": MODEL},
    {
        "name": "assistant",
        "from_scratch": True,
        "model": {**MODEL, "hidden": 24, "layers": 2, "heads": 2, "ffn": 32},
        "distill": {"teacher": "teacher", "relation_heads": 8, "share": 0.5},
    },
    {
        "name": "student",
        "model": {**MODEL, "hidden": 24, "layers": 1, "heads": 2, "ffn": 32},
        "grow": {"layers": "drop"},
        "distill": {"teacher": "assistant", "kind": "minilm"},
    },
]


def chain(corpus: Path, folder: Path) -> str:
    return str(curriculum(corpus, folder, stages=STAGES, train=TRAIN))


TRAIN = {"seq_len": 32, "global_batch": 4, "micro_batch": 2, "lr": 3e-3, "precision": "fp32"} | {
    "tokens": 4 * 32 * 4,
    "eval_interval": 4,
    "eval_bytes": 2048,
}


def all_of(paths: list[str]) -> list[str]:
    """One rank: the first curriculum as it comes, the second stopped in each stage and resumed; what users are told."""
    alone, cut = paths
    said = [stage(alone, "assistant", [])]  # its teacher is not there yet
    for name in ("teacher", "assistant", "student"):
        said += [stage(alone, name, []), stage(cut, name, [], 2), stage(cut, name, [])]
    return said


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("taught")
    paths = [chain(corpus, folder / name) for name in ("alone", "cut")]
    return folder, run(1, all_of, paths)[0]


def test_a_chain_of_teachers_stopped_and_resumed_is_the_same(runs: tuple[Path, list[str]]) -> None:
    """Bit for bit; and metrics say what is learned from the teacher."""
    folder, (early, *said) = runs
    assert "distill.teacher: stage 'teacher' has not finished" in early
    assert said == [""] * 9
    for name in ("assistant", "student"):
        one, other = (folder / which / "run" / name for which in ("alone", "cut"))
        assert is_done(one)
        values = state(other / "checkpoints")
        for key, value in state(one / "checkpoints").items():
            assert np.array_equal(value, values[key]), key
        steps = [r for r in records(one) if "distill_loss" in r]
        assert [r["distill_loss"] for r in steps] == [r["distill_loss"] for r in records(other) if "distill_loss" in r]
        assert len(steps) == 4
        assert all(("bits_per_byte" in r) == (name == "assistant") for r in steps)  # the student has no words' loss
        assert all("validation_bits_per_byte" in r for r in records(one) if "validation_loss" in r)


def test_the_teacher_is_part_of_what_a_checkpoint_is(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = runs
    teacher = find(folder / "alone/run/teacher/checkpoints").manifest
    taught = find(folder / "alone/run/assistant/checkpoints").manifest
    assert teacher is not None
    assert taught is not None
    assert taught.config["distill"]["teacher_hash"] == teacher.hash


def test_another_teacher_at_a_resume_is_refused(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The same teacher in another place is not another one."""
    folder, _ = runs
    moved = tmp_path / "moved"
    shutil.copytree(folder / "cut", moved)
    (moved / "run/assistant/DONE").unlink()
    path = moved / "curriculum.yaml"
    path.write_text(path.read_text().replace(str(folder / "cut"), str(moved)))
    other = ["--distill.teacher", str(folder / "cut/run/student/checkpoints/step-00000004")]
    same = ["--distill.teacher", str(folder / "cut/run/teacher"), "--train.tokens", "640"]
    refused, allowed = run(1, both, str(path), other, same)[0]
    assert "distill.teacher_hash" in refused
    assert "in the checkpoint" in refused
    assert allowed == ""


def both(path: str, *overrides: list[str]) -> list[str]:
    return [stage(path, "assistant", each) for each in overrides]


def test_a_student_is_exported_and_loads(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = runs
    path = find(folder / "alone/run/student/checkpoints").path
    assert path is not None
    export(path, tmp_path / "export", shard_bytes=1 << 30)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.config.num_hidden_layers == 1


def test_a_folder_of_hugging_face_is_to_be_imported(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = runs
    foreign = tmp_path / "roberta-base"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "roberta"}')
    path = folder / "alone/curriculum.yaml"
    (folder / "alone/run/student/DONE").unlink()
    (said,) = run(1, stage, str(path), "student", ["--distill.teacher", str(foreign)])
    assert "of a model of type 'roberta'; import it first, python tools/import_hf.py" in said

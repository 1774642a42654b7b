"""A student and its frozen teacher on real ranks: every layout is one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from growth import Architecture
from pretrain.checkpoint import Reader
from pretrain.config import Distill
from pretrain.config.teachers import held
from pretrain.engine.engine import Engine
from pretrain.engine.megatron import Numerics
from pretrain.engine.teacher import Teacher
from pretrain.estimate.flops import hardware_flops
from pretrain.estimate.teaching import Taught, teaching_flops
from pretrain.layout.work import work_of
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_families import BERT, GPT2
from tests.distributed.test_flops import ON_CPU
from tests.distributed.test_layouts import LAYOUTS, assemble, world

TEACHERS = {"bert": BERT, "gpt2": GPT2, "llama2": ranks.GQA}
STUDENTS = {name: arch.replace({"hidden": 24, "layers": 2, "ffn": 32}) for name, arch in TEACHERS.items()}
FEWER = {"bert": {"heads": 2}, "gpt2": {"heads": 2}, "llama2": {"heads": 2, "kv_heads": 2}}
RECOMPUTE = ("none", "selective", "full")
CASES = [
    ("bert", Distill(kind="minilm")),
    ("bert", Distill(kind="minilm2", relation_heads=8, teacher_layer=2, share=0.5)),
    ("gpt2", Distill(kind="minilm2", relation_heads=4, share=0.5)),
    ("llama2", Distill(kind="minilm2", relation_heads=8)),
    ("llama2", Distill(kind="logits", temperature=2.0, share=0.25)),
]


def student_of(family: str, distill: Distill) -> Architecture:
    """With fewer heads than its teacher where it may have them."""
    arch = STUDENTS[family]
    return arch.replace(FEWER[family]) if distill.kind == "minilm2" else arch


def taught(family: str, how: dict[str, Any], distill: Distill, root: str, numerics: Numerics = ranks.FP32) -> Engine:
    """The engine of a student from nothing that has a teacher."""
    engine = ranks.engine_for(student_of(family, distill), how, numerics)
    ranks.begin(engine)
    teacher = Teacher(TEACHERS[family], engine.layout, numerics, distill, ranks.SEQ_LEN)
    with Reader(Path(root) / family / "step-00000000") as reader:
        teacher.fill(reader.read)
    engine.learn_from(teacher)
    return engine


def trained(hows: list[dict[str, Any]], root: str, numerics: Numerics = ranks.FP32) -> Any:
    """For each layout and case ([(loss, grad norm)], values after) of two steps."""
    found = []
    for how in hows:
        for family, distill in CASES:
            engine = taught(family, how, distill, root, numerics)
            losses = ranks.train(engine, ranks.batches(engine.arch, 2))
            found.append((losses, ranks.collected(engine)))
            engine.free()
    return found


def saved(root: str) -> None:
    for family, arch in TEACHERS.items():
        ranks.trained_and_saved(arch, {}, 2, f"{root}/{family}")


def counted(root: str) -> list[int]:
    """FLOPs per token of forward and backward, of each case and recomputation, as torch counts them."""
    found = []
    for (family, distill), recompute in product(CASES, RECOMPUTE):
        engine = taught(family, {}, distill, root, Numerics(recompute=recompute))
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            engine.backward(ranks.batches(engine.arch, 1)[0])
        found.append(counter.get_total_flops() // (ranks.GLOBAL_BATCH * ranks.SEQ_LEN))
        engine.free()
    return found


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoints of teachers that have made some steps in one process."""
    root = tmp_path_factory.mktemp("teachers")
    run(1, saved, str(root))
    return str(root)


@pytest.fixture(scope="module")
def one_process(teachers: str) -> Any:
    return run(1, trained, [{}], teachers)[0]


@pytest.mark.parametrize("names", [("tp2-sp", "dp2"), ("tp2-dp2",)], ids="+".join)
def test_agrees_with_one_process(names: tuple[str, ...], teachers: str, one_process: Any) -> None:
    hows = [{"tp": 2, "dp": 2} if name == "tp2-dp2" else LAYOUTS[name] for name in names]
    found = run(world(hows[0]), trained, hows, teachers)
    for number in range(len(hows) * len(CASES)):
        family, distill = CASES[number % len(CASES)]
        losses, after = one_process[number % len(CASES)]
        for rank in found:
            np.testing.assert_allclose(rank[number][0], losses, rtol=1e-5, err_msg=f"{family} {distill}")
        arch = student_of(family, distill)
        expected = assemble(arch, [after])
        for key, value in assemble(arch, [rank[number][1] for rank in found]).items():
            # Adam divides by the root of tiny second moments, which magnifies rounding of the gradients.
            np.testing.assert_allclose(
                value, expected[key], atol=2e-3 if key[0] == "weight" else 1e-5, err_msg=str(key)
            )


@pytest.mark.parametrize("recompute", RECOMPUTE[1:])
def test_recomputation_changes_nothing(recompute: str, teachers: str, one_process: Any) -> None:
    """Bit for bit."""
    found = run(1, trained, [{}], teachers, Numerics(recompute=recompute))[0]
    for (losses, after), (expected, values) in zip(found, one_process, strict=True):
        assert losses == expected
        for (*key, value), (*_, other) in zip(after, values, strict=True):
            assert np.array_equal(value, other), key


def test_flops_of_a_step(teachers: str) -> None:
    """What is counted of student, teacher and relations is what is run."""
    cases = product(CASES, RECOMPUTE)
    for ((family, distill), recompute), found in zip(cases, run(1, counted, teachers)[0], strict=True):
        student = student_of(family, distill)
        what = Taught(held(TEACHERS[family], distill), distill)
        how = {"recompute": recompute, "in_sight": what.in_sight(student)}
        expected = hardware_flops(student, ranks.SEQ_LEN, **how) + teaching_flops(student, what, ranks.SEQ_LEN, 1)
        if not distill.share:  # the last attention does not run, so that nothing of it is computed again
            expected -= work_of(student, ranks.SEQ_LEN)[-1].scores // 2 / ranks.SEQ_LEN
        assert found == pytest.approx(expected, rel=1e-2), (family, distill, recompute)

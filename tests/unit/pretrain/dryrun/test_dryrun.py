"""The CUDA path without CUDA: a small curriculum passes, and every planted fault is found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pretrain.dryrun import guard, ranks, settings, verdict
from pretrain.dryrun.launch import Ranks
from pretrain.dryrun.settings import Overrides
from pretrain.dryrun.verdict import Verdict
from pretrain.estimate.speed import GPUS
from tools import dryrun

SMALL = str(Path(__file__).with_name("small.yaml"))
CONFIGS = Path(__file__).parents[4] / "configs"
ROOM = GPUS["a100-80gb"].memory
NONE = Overrides()


@pytest.fixture(scope="module")
def server() -> Iterator[Ranks]:
    if not guard.available():
        reason = "NOT TESTED: the CUDA path: there is no g++, which the dry run needs; install it (apt-get install g++)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Ranks(("-m", "tests.unit.pretrain.dryrun.planted")) as server:
        yield server


def run(server: Ranks, stage: str, numbers: Sequence[int] = (), overrides: Overrides = NONE, **job: Any) -> Verdict:
    curriculum, found, layout = settings.load(SMALL, stage, overrides)
    answers = [
        server.run(config=SMALL, stage=stage, rank=number, overrides=asdict(overrides), **job)
        for number in numbers or ranks.kinds(layout)
    ]
    return verdict.of(curriculum, found, layout, answers, ROOM)


def names(found: Verdict) -> set[str]:
    return {phase.name for rank in found.ranks for phase in rank.phases}


def test_a_stage_from_nothing_passes(server: Ranks) -> None:
    found = run(server, "plain", [3])
    assert found.problems == ()
    assert names(found) == {
        *("start", "first validation", "first step", "step", "validation", "save", "free"),
        *("resume", "step after a resume", "free again"),
    }
    (rank,) = found.ranks
    assert any("TransformerBlock" in line and "bfloat16[256, 2, 128]" in line for line in rank.shapes)


def test_growth_into_an_interleaved_pipeline_passes(server: Ranks) -> None:
    found = run(server, "wide", [0, 4])
    assert [rank.name for rank in found.ranks] == ["rank 0 pp 0/2 dp 0/2 tp 0/2", "rank 4 pp 1/2 dp 0/2 tp 0/2"]
    assert found.problems == ()
    assert "growth" in names(found)


def test_frozen_parts_a_trial_and_a_patch_pass(server: Ranks) -> None:
    found = run(server, "frozen", [1])
    assert found.problems == ()
    assert {"trial and growth", "patch 0", "step after patch 0"} <= names(found)


@pytest.mark.parametrize("stage", ["taught", "told"])
def test_a_teacher_passes(server: Ranks, stage: str) -> None:
    """The memory that it needs is the plan's, and no wait of the host comes with it."""
    found = run(server, stage, [1])
    assert found.problems == ()
    assert "teacher" in names(found)


@pytest.mark.parametrize(
    ("fault", "stage", "numbers", "words"),
    [
        ("cpu_tensor", "plain", [0], ("NCCL all_reduce of a tensor on cpu", "planted.py:", "cpu_tensor")),
        ("item", "plain", [0], ("the host waits in a step", "planted.py:", "item")),
        ("unlike", "plain", [0], ("same device", "planted.py:", "unlike")),
        ("device_view", "frozen", [0], ("cpu and cuda", "growth/")),
        ("other_shape", "piped", [0, 1], ("message 1 from rank 0", "[255, 2, 128]", "[256, 2, 128]")),
        ("other_order", "piped", [0, 1], ("along pp", "float32 x 5", "float32 x 3", "planted.py:")),
    ],
)
def test_a_planted_fault_is_found(
    server: Ranks, fault: str, stage: str, numbers: list[int], words: tuple[str, ...]
) -> None:
    found = run(server, stage, numbers, fault=fault)
    assert [p for p in found.problems if all(word in p for word in words)], found.problems


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name",
    [
        *("llama2_55m_to_7b", "llama2_55m_to_7b_head_dim", "bert_to_large", "gpt2_stack", "bert_pli"),
        *("transformer_xl", "adaptive_span_small", "reasoning/convolution_attention"),
    ],
)
@pytest.mark.usefixtures("server")
def test_a_curriculum_passes(name: str) -> None:
    assert dryrun.main([str(CONFIGS / f"{name}.yaml")]) == 0

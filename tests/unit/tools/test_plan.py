"""What a curriculum will cost."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from growth import Architecture
from pretrain import config
from pretrain.estimate import cost
from tests.unit.small import TEXT, small_curriculum
from tools import plan

ROOT = Path(__file__).parents[3]
LARGE = str(ROOT / "configs" / "llama2_55m_to_7b.yaml")


@pytest.fixture(scope="module")
def large() -> list[cost.Cost]:
    return cost.of_curriculum(config.load(LARGE), gpu=cost.GPUS["a100-80gb"])


def test_the_curriculum_to_7b_is_what_it_says(large: list[cost.Cost]) -> None:
    counts = [c.arch.parameters() for c in large]
    assert len(counts) == 8
    assert counts[0] == pytest.approx(55e6, rel=0.05)
    assert counts[-1] == 6_738_415_616
    assert all(2 / 1.12 <= new / old <= 2 * 1.12 for old, new in pairwise(counts))
    for c in large:
        size, train = c.arch.sizes, c.stage.train
        assert size["head_dim"] == 128
        assert size["ffn"] == -(-8 * size["hidden"] // 3 // 256) * 256
        assert train.tokens % (train.global_batch * train.seq_len) == 0
        assert c.memory.total < cost.GPUS["a100-80gb"].memory
    # Compute-optimal at the end of every stage.
    tokens = 0
    for c in large:
        tokens += c.stage.train.tokens
        assert tokens == pytest.approx(20 * c.arch.parameters(), rel=0.001)
    vocab = [c.arch.sizes["vocab"] for c in large]
    assert vocab[0] <= 8000
    assert vocab[5:] == [32_000] * 3
    assert [c.nodes for c in large] == [1, 1, 1, 2, 4, 8, 8, 16]


def test_width_or_depth_at_each_event(large: list[cost.Cost]) -> None:
    for old, new in pairwise(large):
        axes = {axis for axis in ("hidden", "layers") if old.arch.sizes[axis] != new.arch.sizes[axis]}
        assert len(axes) == 1


def test_its_table_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([LARGE]) == 0
    text = capsys.readouterr().out
    assert "6.7b   6,738,415,616" in text
    assert "6.7b from scratch on the same tokens" in text
    assert plan.main([LARGE, "--json", "--mfu", "0.4"]) == 0
    data = json.loads(capsys.readouterr().out)
    last = data["stages"][-1]
    assert sum(last["parts"].values()) == last["parameters"] == 6_738_415_616
    assert last["tokens_per_second"] == pytest.approx(0.4 * 312e12 * 128 / (last["flops"] / last["tokens"]))
    assert last["memory_bytes"]["weights"] == pytest.approx(2 * last["parameters"] / 2, rel=1e-3)
    assert last["memory_bytes"]["gradients"] == pytest.approx(4 * last["parameters"] / 2, rel=1e-3)
    assert last["checkpoint_bytes"] == 12 * last["parameters"]
    assert sum(stage["flops"] for stage in data["stages"]) < data["from_scratch"]["flops"]


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(LARGE).read_text().replace("{tp: 2, dp: 64, sequence_parallel: true}", "{tp: 1, dp: 64}")
    text = text.replace("global_batch: 1024, micro_batch: 2", "global_batch: 1024, micro_batch: 8")
    (tmp_path / "large.yaml").write_text(text)
    assert plan.main([str(tmp_path / "large.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: stage '6.7b' needs ")
    assert "it would fit with train.recompute full" in err
    assert "Traceback" not in err


def test_remedies_do_fit() -> None:
    gpu, curriculum = cost.GPUS["a100-80gb"], config.load(LARGE)
    last = curriculum.stages[-1]
    plain = ["--parallel.tp", "1", "--parallel.no_sequence_parallel", "--train.micro_batch", "4"]
    too_large = cost.of_stage(curriculum.override(last, plain), None, gpu=gpu)
    assert too_large.memory.total > gpu.memory
    words = [remedy.split(" (")[0] for remedy in cost.remedies(too_large, gpu)]
    wider = [f"parallel.tp {tp} with sequence_parallel and dp {64 // tp}" for tp in (2, 4)]
    assert words == ["train.recompute full", *wider]
    for changes in (
        [*plain, "--train.recompute", "full"],
        ["--parallel.dp", "32", "--train.micro_batch", "4"],
        ["--parallel.tp", "4", "--parallel.dp", "16", "--train.micro_batch", "4"],
    ):
        assert cost.of_stage(curriculum.override(last, changes), None, gpu=gpu).memory.total <= gpu.memory
    twice = ["--parallel.tp", "1", "--parallel.no_sequence_parallel", "--train.micro_batch", "2"]
    assert cost.of_stage(curriculum.override(last, twice), None, gpu=gpu).memory.total > gpu.memory


def test_nodes_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(small_curriculum(tmp_path).path)
    assert plan.main([path, "--nodes", "1"]) == 2
    assert "parallel asks for 2 GPUs, and --nodes 1 has 8" in capsys.readouterr().err
    assert plan.main([path, "--nodes", "1", "--gpus-per-node", "2"]) == 0
    assert plan.main([path, "--mfu", "45"]) == 2
    assert "--mfu 45: give a share" in capsys.readouterr().err


def test_an_absent_dp_fills_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "free.yaml").write_text(TEXT.replace("parallel: {tp: 2, dp: 1}", "parallel: {tp: 2}"))
    wide = config.load(tmp_path / "free.yaml").stages[1]
    found = cost.of_stage(wide, None, gpu=cost.GPUS["h100-80gb"], nodes=4)
    assert (found.layout.world, found.layout.dp, found.nodes) == (32, 16, 4)


def test_parts_add_up() -> None:
    sizes = {"vocab": 64, "hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 32}
    parts = plan.parameters_by_part(Architecture("llama2", sizes))
    assert parts == {
        "embedding": 64 * 16, "attention": 2 * (2 * 16 * 16 + 2 * 16 * 8), "MLP": 2 * 3 * 16 * 32, "norms": 5 * 16,
        "head": 64 * 16,
    }  # fmt: skip


def test_a_pipeline_waits(tmp_path: Path) -> None:
    curriculum = small_curriculum(tmp_path)
    stage = curriculum.override(curriculum.stages[0], ["--parallel.pp", "2", "--parallel.dp", "1"])
    found = cost.of_stage(stage, None, gpu=cost.GPUS["a100-80gb"])
    assert found.bubble == pytest.approx(1 / 17)  # (pp - 1) / (micro-batches + pp - 1)
    assert found.nvlink > 0
    assert found.network == 0

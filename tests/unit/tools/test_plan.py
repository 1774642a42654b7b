"""What a curriculum will cost."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2 as spm

from growth import Architecture
from pretrain import config
from pretrain.config import Stage
from pretrain.data.tokenizers.merge_age import Piece, merge_age
from pretrain.estimate import cost, law, speed
from pretrain.estimate.parts import parameters_by_part
from pretrain.estimate.speed import GPUS
from pretrain.layout.work import totals
from tests.unit.small import TEXT, small_curriculum
from tools import plan

CONFIGS = Path(__file__).parents[3] / "configs"
LARGE = str(CONFIGS / "llama2_55m_to_7b.yaml")
HEAD_DIM = str(CONFIGS / "llama2_55m_to_7b_head_dim.yaml")
BERT = str(CONFIGS / "bert_to_large.yaml")
A100 = GPUS["a100-80gb"]


def costs_of(path: str) -> list[cost.Cost]:
    return cost.of_curriculum(config.load(path), gpu=A100)


@pytest.fixture(scope="module")
def large() -> list[cost.Cost]:
    return costs_of(LARGE)


@pytest.fixture(scope="module")
def bert() -> list[cost.Cost]:
    return costs_of(BERT)


def parents(costs: list[cost.Cost]) -> list[tuple[cost.Cost, cost.Cost]]:
    return list(pairwise(costs))


def runs_well(c: cost.Cost) -> None:
    """Equal shares on every rank, whole steps along the ramp, and room on the GPU."""
    size, train, layout = c.arch.sizes, c.stage.train, c.layout
    assert size["heads"] % layout.tp == size["ffn"] % layout.tp == 0
    assert len(set(layout.pipeline)) == 1
    unit = layout.batch_unit(train.micro_batch)
    assert not any(n % unit for n in (train.global_batch, train.ramp_from, train.ramp_by))
    assert c.memory.total < 0.9 * A100.memory
    assert layout.world == 8 * c.nodes


@pytest.mark.parametrize("path", [LARGE, HEAD_DIM])
def test_the_curriculum_to_7b_is_what_it_says(path: str) -> None:
    costs = costs_of(path)
    counts = [c.arch.parameters() for c in costs]
    assert len(counts) == 8
    assert counts[0] == pytest.approx(55e6, rel=0.05)
    assert counts[-1] == 6_738_415_616
    assert all(2 / 1.12 <= new / old <= 2 * 1.12 for old, new in pairwise(counts))
    tokens, text = 0, Path(path).read_text()
    for c in costs:
        size = c.arch.sizes
        assert f"- name: {c.stage.name} # {c.arch.parameters():,}" in text
        assert size["ffn"] == -(-8 * size["hidden"] // 3 // 256) * 256
        runs_well(c)
        tokens += c.stage.train.tokens
        assert tokens == pytest.approx(20 * c.arch.parameters(), rel=0.005)  # compute-optimal at the end
    vocab = [c.arch.sizes["vocab"] for c in costs]
    assert vocab[0] <= 8000
    assert vocab[5:] == [32_000] * 3
    assert vocab == sorted(vocab)
    assert [c.nodes for c in costs] == [1, 1, 1, 2, 4, 8, 8, 16]
    for old, new in parents(costs):
        assert len({axis for axis in ("hidden", "layers") if old.arch.sizes[axis] != new.arch.sizes[axis]}) == 1


def test_its_heads(large: list[cost.Cost]) -> None:
    assert all(c.arch.sizes["head_dim"] == 128 for c in large)
    assert all(c.arch.sizes["heads"] * 128 == c.arch.sizes["hidden"] for c in large)
    variant = [stage.model for stage in config.load(HEAD_DIM).stages]
    assert [model.head_dim for model in variant] == [64] * 4 + [128] * 4


def test_its_batches_and_rates(large: list[cost.Cost]) -> None:
    """Each ramp begins where the last one ended, below the critical batch; one schedule, in proportion to 1 / width."""
    sizes = [(c.stage.train.ramp_from * c.stage.train.seq_len, c.batch_tokens) for c in large]
    assert all(old[1] == new[0] < new[1] for old, new in pairwise(sizes))
    assert sizes[-1][1] == 1024 * 4096
    for c in large:
        n, train = c.arch.parameters(), c.stage.train
        loss = 1.69 + 406.4 / n**0.34 + 410.7 / (20 * n) ** 0.28
        assert c.batch_tokens < 2e8 / loss**4.76
        assert train.lr == pytest.approx(3e-4 * 4096 / c.arch.sizes["hidden"], rel=0.02)
        assert (train.schedule, c.stage.grow.schedule, train.min_lr) == ("wsd", "continue", 3e-5)
        assert 0.4 < train.ramp_tokens / train.tokens < 0.6
    tokens = [c.stage.train.tokens for c in large]
    assert 0.1 * sum(tokens) < tokens[-1]  # it decays in the last stage alone


def test_its_vocabularies_can_be_cut(large: list[cost.Cost]) -> None:
    """Of a tokenizer such as LLaMA-2's: special pieces, bytes, merges by falling score, then characters."""
    kinds = spm.ModelProto.SentencePiece
    characters = [*map(chr, range(0x20, 0x7F)), *map(chr, range(0x100, 0x100 + 1500))]
    merges = [a + b for a in characters[:200] for b in characters[:200]][: 32_000 - 259 - len(characters)]
    pieces = [kinds(piece=text, type=Piece.CONTROL) for text in ("<unk>", "<s>", "</s>")]
    pieces += [kinds(piece=f"<0x{n:02X}>", type=Piece.BYTE) for n in range(256)]
    pieces += [kinds(piece=text, score=-n, type=Piece.NORMAL) for n, text in enumerate([*merges, *characters])]
    cut = merge_age(pieces).cut
    assert len(pieces) == 32_000
    for c in [*large, *costs_of(HEAD_DIM)]:
        assert cut[c.arch.sizes["vocab"]]
    assert np.flatnonzero(~cut).max() < 400  # the base alone cannot be cut


def test_bert_to_large_is_what_it_says(bert: list[cost.Cost]) -> None:
    counts = [c.arch.parameters() for c in bert]
    text = Path(BERT).read_text()
    (large,) = (s for s in config.load(str(CONFIGS / "bert_large.yaml")).stages if s.name == "long")
    assert bert[-1].arch.sizes == large.model.architecture().sizes
    assert [c.arch.sizes["layers"] for c in bert] == [3, 3, 6, 12, 24, 24]
    assert all(2 / 1.12 <= new / old <= 2 * 1.12 for old, new in pairwise(counts[:-1]))
    tokens = {128: 0, 512: 0}
    for c in bert:
        assert f"- name: {c.stage.name} # {c.arch.parameters():,}" in text
        runs_well(c)
        tokens[c.stage.train.seq_len] += c.stage.train.tokens
        assert (c.stage.train.schedule, c.stage.grow.schedule) == ("linear", "continue")
    assert tokens == {128: pytest.approx(29.5e9, rel=0.01), 512: pytest.approx(13.1e9, rel=0.01)}
    first = bert[0].stage.train
    assert first.warmup * first.tokens == pytest.approx(10_000 * 256 * 128, rel=0.01)


@pytest.mark.parametrize(
    ("name", "pattern", "layers"),
    [("sandwich_16", "ssssss" + "sf" * 10 + "ffffff", 32), ("par_32", "sffsfffsffsfffsffsffffffffffffff", 32)],
)
def test_published_orders(name: str, pattern: str, layers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Their patterns are printed; uneven pipelines have even work."""
    assert plan.main([str(CONFIGS / f"{name}.yaml")]) == 0
    assert pattern in capsys.readouterr().out
    (stage,) = config.load(str(CONFIGS / f"{name}.yaml")).stages
    split = replace(stage, parallel=replace(stage.parallel, pp=4, dp=2))
    (c,) = cost.of_curriculum(config.Curriculum("x", (split,)), gpu=A100)
    work = totals(c.arch, stage.train.seq_len)
    ends = np.cumsum(c.layout.pipeline)
    shares = [sum(work[end - n : end]) for end, n in zip(ends, c.layout.pipeline, strict=True)]
    assert sum(c.layout.pipeline) == layers
    assert len(set(c.layout.pipeline)) > 1
    assert max(shares) - min(shares) <= 2 * max(work)


def test_its_table_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([LARGE]) == 0
    text = capsys.readouterr().out
    assert "6.7b   6,738,415,616" in text
    assert "6.7b from scratch on the same tokens" in text
    assert "rank 1: [layers 8-15]            [layers 24-31, head]" in text
    assert "llm-foundry" in text  # where MFU comes from
    assert plan.main([LARGE, "--json", "--mfu", "0.4"]) == 0
    data = json.loads(capsys.readouterr().out)
    last = data["stages"][-1]
    assert sum(last["parts"].values()) == last["parameters"] == 6_738_415_616
    assert last["tokens_per_second"] == pytest.approx(0.4 * 312e12 * 128 / (last["flops"] / last["tokens"]), rel=1e-4)
    assert last["memory_bytes"]["weights"] == pytest.approx(2 * last["parameters"] / 2, rel=1e-3)
    assert last["memory_bytes"]["gradients"] == pytest.approx(4 * last["parameters"] / 2, rel=1e-3)
    assert last["checkpoint_bytes"] == 12 * last["parameters"]
    assert last["hardware_flops"] > last["flops"]
    assert sum(stage["flops"] for stage in data["stages"]) < data["from_scratch"]["flops"]


@pytest.mark.parametrize("name", ["bert_to_large", "gpt2_124m"])
def test_other_families(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(CONFIGS / f"{name}.yaml")
    assert plan.main([path, "--json"]) == 0
    for stage, parts in zip(costs_of(path), json.loads(capsys.readouterr().out)["stages"], strict=True):
        assert sum(parts["parts"].values()) == stage.arch.parameters()
        assert parts["parts"]["attention"] == stage.arch.sizes["layers"] * 4 * _square(stage.arch)
    assert plan.main([path, "--suggest"]) == 0
    assert "as it is" in capsys.readouterr().out


def _square(arch: Architecture) -> int:
    """Of a layer's attention, a quarter: a square matrix and its bias; wider heads where hidden is narrower."""
    hidden, queries = arch.sizes["hidden"], arch.sizes["heads"] * arch.sizes["head_dim"]
    return hidden * queries + (3 * queries + hidden) // 4


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(LARGE).read_text().replace("{pp: 2, dp: 64, pipeline: [8, 8, 8, 8]}", "{tp: 1, dp: 64}")
    text = text.replace("micro_batch: 1, lr: 3.0e-4", "micro_batch: 2, lr: 3.0e-4")
    (tmp_path / "large.yaml").write_text(text)
    assert plan.main([str(tmp_path / "large.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: stage '6.7b' needs ")
    assert "it would fit with train.micro_batch 1 (" in err
    assert "; train.recompute full (" in err
    assert "Traceback" not in err


def last_stage(*changes: str) -> Stage:
    curriculum = config.load(LARGE)
    plain = ["--parallel.pp", "1", "--parallel.pipeline", "None", "--train.ramp_by", "256"]
    return curriculum.override(curriculum.stages[-1], [*plain, *changes])


def test_remedies_do_fit() -> None:
    too_large = cost.of_stage(last_stage("--train.micro_batch", "4"), None, gpu=A100)
    assert too_large.memory.total > A100.memory
    words = [remedy.split(" (")[0] for remedy in cost.remedies(too_large, A100)]
    wider = [f"parallel.tp {tp} with sequence_parallel and dp {64 // tp}" for tp in (2, 4)]
    assert words == ["train.micro_batch 2", "train.recompute full", *wider]
    sequence = ["--train.micro_batch", "4", "--parallel.sequence_parallel"]
    for changes in (
        ["--train.micro_batch", "2"],
        ["--train.micro_batch", "4", "--train.recompute", "full"],
        ["--parallel.tp", "2", "--parallel.dp", "32", *sequence],
        ["--parallel.tp", "4", "--parallel.dp", "16", *sequence],
    ):
        assert cost.of_stage(last_stage(*changes), None, gpu=A100).memory.total <= A100.memory
    longer = cost.of_stage(last_stage("--train.micro_batch", "4", "--train.seq_len", "8192"), None, gpu=A100)
    assert not [remedy for remedy in cost.remedies(longer, A100) if remedy.startswith("train.micro_batch")]


def test_suggestions_fit_and_are_sorted(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([LARGE, "--suggest", "--json"]) == 0
    curriculum = config.load(LARGE)
    found = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in found] == [stage.name for stage in curriculum.stages]
    for stage, told in zip(curriculum.stages, found, strict=True):
        as_it_is = cost.of_stage(stage, curriculum.parent(stage), gpu=A100)
        rates = [s["mfu"] for s in told["suggestions"]]
        assert rates[0] >= max(*rates, as_it_is.speed.mfu) - 0.011
        for s in told["suggestions"]:
            p = s["parallel"]
            assert p["tp"] * p["pp"] * p["dp"] == as_it_is.layout.world
            assert s["memory_bytes"] <= 0.9 * A100.memory
            # It is a stage that can be run.
            changes = [f"--parallel.{key}={p[key]}" for key in ("tp", "pp", "dp")]
            changes += ["--parallel.sequence_parallel", f"--train.micro_batch={s['micro_batch']}"]
            pipeline = (
                ["--parallel.pipeline", *map(str, p["pipeline"])] if p["pp"] > 1 else ["--parallel.pipeline", "None"]
            )
            changed = curriculum.override(stage, [*changes, f"--train.recompute={s['recompute']}", *pipeline])
            again = cost.of_stage(changed, curriculum.parent(stage), gpu=A100)
            assert (again.memory.total, again.speed.mfu) == (s["memory_bytes"], s["mfu"])


def test_suggestions_for_other_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([BERT, "--suggest", "--json", "--nodes", "2"]) == 0
    for stage in json.loads(capsys.readouterr().out)["stages"]:
        for s in stage["suggestions"]:
            assert s["parallel"]["tp"] * s["parallel"]["pp"] * s["parallel"]["dp"] == 16
    assert plan.main([LARGE, "--suggest", "--nodes", "3"]) == 2
    assert "nothing fits for 55m" in capsys.readouterr().err


def test_nodes_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(small_curriculum(tmp_path).path)
    assert plan.main([path, "--nodes", "1"]) == 2
    assert "needs 2 ranks, and there are 8" in capsys.readouterr().err
    assert plan.main([path, "--nodes", "1", "--gpus-per-node", "2"]) == 0
    assert plan.main([path, "--mfu", "45"]) == 2
    assert "--mfu 45: give a share" in capsys.readouterr().err


def test_an_absent_dp_fills_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "free.yaml").write_text(TEXT.replace("parallel: {tp: 2, dp: 1}", "parallel: {tp: 2}"))
    wide = config.load(tmp_path / "free.yaml").stages[1]
    found = cost.of_stage(wide, None, gpu=GPUS["h100-80gb"], nodes=4)
    assert (found.layout.world, found.layout.dp, found.nodes) == (32, 16, 4)


def test_parts_add_up() -> None:
    sizes = {"vocab": 64, "hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn": 32}
    parts = parameters_by_part(Architecture("llama2", sizes))
    assert parts == {
        "embedding": 64 * 16, "attention": 2 * (2 * 16 * 16 + 2 * 16 * 8), "MLP": 2 * 3 * 16 * 32, "norms": 5 * 16,
        "head": 64 * 16,
    }  # fmt: skip


def test_a_pipeline_waits(tmp_path: Path) -> None:
    curriculum = small_curriculum(tmp_path)
    stage = curriculum.override(curriculum.stages[0], ["--parallel.pp", "2", "--parallel.dp", "1"])
    found = cost.of_stage(stage, None, gpu=A100)
    assert found.speed.bubble == pytest.approx(1 / 17)  # (pp - 1) / (micro-batches + pp - 1)
    assert found.speed.nvlink > 0
    assert found.speed.network == 0


def test_what_a_gpu_sends(large: list[cost.Cost]) -> None:
    """8 of the 64 data-parallel ranks of a pipeline rank share a node, and its cards."""
    last = large[-1]
    assert last.speed.nvlink == pytest.approx(63 / 64 * (2 * 4 + 2) * 6_738_415_616 / 2, rel=0.01)
    boundary = 2 * 2 * 4096 * (1024 * 4096 / 64) * 2  # there and back, bf16, two chunks
    assert last.speed.network == pytest.approx(last.speed.nvlink / 8 + boundary, rel=0.01)


def test_what_slows_a_stage_down() -> None:
    found = {
        name: speed.of_step(c.arch, c.layout, c.stage.train, A100).mfu
        for name, c in {
            "plain": cost.of_stage(last_stage("--train.micro_batch", "1"), None, gpu=A100),
            "recomputed": cost.of_stage(last_stage("--train.recompute", "full"), None, gpu=A100),
            "tensor": cost.of_stage(last_stage("--parallel.tp", "8", "--parallel.dp", "8"), None, gpu=A100),
        }.items()
    }
    assert found["plain"] == pytest.approx(0.64 * 0.75, rel=0.1)
    assert 0.7 < found["recomputed"] / found["plain"] < 0.8  # three of four passes
    assert found["tensor"] < found["plain"]


def test_small_layers_are_bound_by_launching(bert: list[cost.Cost]) -> None:
    c = bert[1]
    assert c.layout.dp == 8
    assert c.speed.seconds > 3 * speed.LAUNCH
    smaller = replace(c.stage.train, micro_batch=1)
    assert speed.of_step(c.arch, c.layout, smaller, A100).seconds > 32 * 3 * speed.LAUNCH


def test_growth_events_cost_time_and_flops(large: list[cost.Cost]) -> None:
    assert large[0].event == 0
    for old, new in parents(large):
        alone = cost.of_stage(new.stage, None, gpu=A100)
        assert 0 < new.event < 300
        assert new.flops > alone.flops
        assert alone.memory.event == 0
        assert new.memory.event > 0 or new.layout.pp > 1  # a pipeline is never as full at an event as in a step
        assert new.event > 2 * 12 * old.arch.parameters() / (2e9 * new.nodes)  # reading the parent twice


def test_epochs_need_a_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([str(CONFIGS / "bert_stack.yaml")]) == 2
    assert "bookcorpus-bert" in capsys.readouterr().err


def test_two_curricula_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    """The law's losses: each from scratch on its tokens as the formula has it, a grown model not below that, and not
    above what its own FLOPs buy from scratch."""
    jump = str(CONFIGS / "llama2_late_jump_to_7b.yaml")
    assert plan.main([LARGE, jump, "--json"]) == 0
    stages, late = json.loads(capsys.readouterr().out)["curricula"]
    assert [stages["stages"], late["stages"]] == [8, 2]
    for each in (stages, late):
        alone = each["from_scratch"]
        tokens = each["tokens"]
        assert alone["loss"] == pytest.approx(1.69 + 406.4 / 6_738_415_616**0.34 + 410.7 / tokens**0.28)
        assert alone["loss"] < each["loss"] < alone["loss_at_flops"]
        assert each["flops"] < alone["flops"]
    assert late["flops"] < stages["flops"] / 2
    assert late["loss"] > stages["loss"]
    assert plan.main([LARGE, jump]) == 0
    assert "a bound rather than a forecast" in capsys.readouterr().out.replace("\n", " ")


def test_the_law_and_its_inverse() -> None:
    for size, tokens in ((1e8, 2e9), (7e9, 1.4e11)):
        loss = law.HOFFMANN.loss(size, tokens)
        assert law.HOFFMANN.tokens_to(loss, size) == pytest.approx(tokens)
    assert law.HOFFMANN.tokens_to(law.HOFFMANN.loss(7e9, 1e12), 1e7) == float("inf")

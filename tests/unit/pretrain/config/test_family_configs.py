"""The curricula of GPT-2 and BERT that come with Cambium are what their authors wrote."""

from itertools import pairwise
from pathlib import Path

import pytest

import growth
from pretrain import config


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpt2_124m", [124_439_808]),
        ("gpt2_stack", [46_234_368, 67_497_984, 110_025_216]),
        ("bert_base", [109_811_516, 110_106_428]),
        ("bert_layerdrop", [109_811_516, 110_106_428]),
        ("bert_large", [335_832_892, 336_226_108]),
        ("bert_stack", [46_020_668, 67_284_284, 109_811_516]),
        ("megatron_gpt2", [1_212_031_488]),
        ("megatron_bert", [336_226_108]),
        ("sandwich_16", [237_455_360]),
        ("par_32", [77_412_352]),
        ("transformer_xl", [54_200_340]),
    ],
)
def test_parameters(name: str, sizes: list[int]) -> None:
    stages = config.load(f"configs/{name}.yaml").stages
    assert [stage.model.architecture().parameters() for stage in stages] == sizes


def test_progressive_diverging() -> None:
    """Twelve calls of 3, 6 and 12 layers, adapters on attention in the later two, whose plans claim to be exact."""
    stages = config.load("configs/gpt2_diverging.yaml").stages
    archs = [stage.architecture() for stage in stages]
    assert [(arch.layers, arch.depth) for arch in archs] == [(3, 12), (6, 12), (12, 12)]
    assert [arch.adapters and arch.adapters.on for arch in archs] == [None, ("attention",), ("attention",)]
    plans = [growth.between(a, b, {"layers": "untie"}, seed=0, init_std=0.02) for a, b in pairwise(archs)]
    assert all(plan.preserves for plan in plans)
    assert plans[1].operators == ("adapters: merge", "layers: untie", "adapters: attach")


def test_nine_tenths_of_the_steps_are_short() -> None:
    short, long = (stage.train for stage in config.load("configs/bert_base.yaml").stages)
    steps = [t.tokens / (t.global_batch * t.seq_len) for t in (short, long)]
    assert steps == [900_000, 100_000]


@pytest.mark.parametrize(("folder", "batches", "batch"), [("", 80_000, 8192), ("/small", 300, 1024)])
def test_three_ways_on_maths_text(folder: str, batches: int, batch: int) -> None:
    """As many tokens for each, in as many batches; each of the published ones sees both texts."""
    for name in ("gpt2", "convolution_attention", "diverging"):
        stages = config.load(f"configs/reasoning{folder}/{name}.yaml").stages
        assert {stage.train.global_batch * stage.train.seq_len for stage in stages} == {batch}
        assert sum(stage.train.steps() for stage in stages) == pytest.approx(batches, abs=1)
        texts = {text for stage in stages for text in stage.data.folders}
        assert texts == ({"data/problems"} if folder else {"data/maths/college", "data/maths/web"})


@pytest.mark.parametrize(("name", "steps"), [("megatron_gpt2", 300_000), ("megatron_bert", 2_000_000)])
def test_megatrons_steps_and_warm_up(name: str, steps: int) -> None:
    (stage,) = config.load(f"configs/{name}.yaml").stages
    assert stage.train.steps() == steps
    assert stage.train.warmup * steps == {"megatron_gpt2": 3_000, "megatron_bert": 10_000}[name]


def test_what_they_drop() -> None:
    """BERT and GPT-2 a tenth; the published orders what their sources say; the others nothing."""
    own = {"adaptive_span_small": (0.3, 0.3), "adaptive_span_large": (0.4, 0.4)}
    own |= {"sandwich_16": (0.3, 0.1), "par_32": (0.1, 0.0), "transformer_xl": (0.1, 0.0)}
    for path in sorted(Path("configs").glob("*.yaml")):
        for train in (stage.train for stage in config.load(str(path)).stages):
            tenth = 0.1 if path.stem.startswith(("bert_", "gpt2_", "megatron_", "minilm_")) else 0.0
            assert (train.dropout, train.attention_dropout) == own.get(path.stem, (tenth, tenth))


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "ffn", "steps"),
    [("small", 12, 512, 2048, [900_000]), ("large", 24, 768, 4096, [250_000, 20_000])],
)
def test_adaptive_span(name: str, layers: int, hidden: int, ffn: int, steps: list[int]) -> None:
    stages = config.load(f"configs/adaptive_span_{name}.yaml").stages
    model, t = stages[0].model, stages[0].train
    assert (model.layers, model.hidden, model.heads, model.ffn) == (layers, hidden, 8, ffn)
    assert (model.span.max, model.span.ramp, model.span.penalty) == (8192, 32, 5e-7)
    assert (t.global_batch, t.seq_len, t.memory, t.clip) == (64, 512, 8192, 0.03)
    assert t.warmup_tokens == 32_000 * 64 * 512
    assert [stage.train.steps() for stage in stages] == steps
    assert {stage.train.lr for stage in stages} <= {t.lr, t.lr / 10}


@pytest.mark.parametrize(
    ("name", "layers", "hidden", "batch", "lr"),
    [("l6_h768", 6, 768, 1024, 5e-4), ("l12_h384", 12, 384, 2048, 6e-4), ("l6_h384", 6, 384, 512, 4e-4)],
)
def test_minilm(name: str, layers: int, hidden: int, batch: int, lr: float) -> None:
    *_, teacher, student = config.load(f"configs/minilm_{name}.yaml").stages
    model, t = student.model, student.train
    assert (model.layers, model.hidden, model.heads, model.ffn) == (layers, hidden, 12, 4 * hidden)
    assert (t.global_batch, t.lr, t.seq_len, t.steps(), t.warmup * t.steps()) == (batch, lr, 512, 400_000, 4_000)
    assert (t.weight_decay, t.schedule, model.vocab) == (0.01, "linear", 30_522)
    assert (student.distill.teacher, student.distill.kind, student.distill.share) == (teacher.name, "minilm", 0)
    assert (teacher.model.layers, teacher.model.hidden, teacher.train.seq_len) == (12, 768, 512)


def test_progressive_layer_increase() -> None:
    (stage,) = config.load("configs/bert_pli.yaml").stages
    assert [(p.at, p.index, p.source) for p in stage.patches] == [
        ((n + 1) / 10, index, "clone") for n, index in enumerate([1, 1, 2, 2, 2, 3, 3, 3, 4])
    ]
    assert (stage.model.layers, stage.at_end().layers, stage.train.seq_len) == (1, 10, 128)
    t, data = stage.train, stage.data
    assert (t.lr, t.schedule, t.warmup, t.epochs, t.micro_batch) == (2e-5, "linear", 0.025, 1, 32)
    assert t.min_lr == pytest.approx(2 / 3 * t.lr, rel=1e-4)
    assert (data.mask_rate, data.validation_fraction, stage.log.tensorboard) == (0.1, 0.05, True)


def test_layers_to_compare_start_from_nothing() -> None:
    loaded = config.load("configs/bert_layers.yaml")
    assert [(s.model.layers, s.at_end().layers) for s in loaded.stages] == [(2, 2), (4, 4), (8, 8), (12, 12), (1, 10)]
    assert not any(loaded.parent(stage) for stage in loaded.stages)

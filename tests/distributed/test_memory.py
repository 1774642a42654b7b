"""What the plan says of a rank's memory, against what real ranks hold."""

from __future__ import annotations

import gc
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensor

from growth import Architecture
from growth.family import family as table
from pretrain import families
from pretrain.config import Average, Train
from pretrain.config.levels import kinds
from pretrain.data.samples import Samples, causal, part
from pretrain.engine import megatron
from pretrain.engine.dropout import sample_keys
from pretrain.engine.engine import Adam, Engine
from pretrain.engine.megatron import Numerics
from pretrain.estimate import memory
from pretrain.families.common import dropout
from pretrain.layout import Layout
from tests.distributed.harness import run

SIZES = {"vocab": 512, "hidden": 128, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 384}


def settings_of(**changes: Any) -> Train:
    given = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 1e-3, "tokens": 1024, "precision": "bf16"}
    return Train(**{**given, **changes})


OTHER = {
    "gpt2": {**SIZES, "ffn": 512, "positions": 256},
    "bert": {**SIZES, "ffn": 512, "positions": 256, "types": 2, "labels": 2},
    "transformer_xl": {**SIZES, "ffn": 512, "sinusoid": 128},
    "convolution_attention": {**SIZES, "ffn": 512, "positions": 256, **table("convolution_attention").fixed},
}


def _arch(family: str = "llama2", **changes: int) -> Architecture:
    if family not in OTHER:
        return Architecture(family, {**SIZES, **changes})
    sizes = {axis: n for axis, n in {**OTHER[family], **changes}.items() if axis != "kv_heads"}
    of = kinds(table(family), (1, 2, 2, 2, 1)) if table(family).streams else ()
    return Architecture(family, {**sizes, "layers": len(of) or sizes["layers"]}, kinds=of)


def _samples(family: str, n: int, seq_len: int) -> Samples:
    tokens = torch.randint(0, 128, (n, seq_len + 1), generator=torch.Generator().manual_seed(0))
    found = dict(causal(tokens))
    if family == "bert":
        ones, zeros = torch.ones(n, seq_len), torch.zeros(n, seq_len, dtype=torch.long)
        found |= {"mask": ones, "valid": ones, "types": zeros, "next_sentence": torch.zeros(n, dtype=torch.long)}
    return found


def _held(before: set[int]) -> int:
    """Bytes of all tensors that are alive and were not before."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if _real(found) and found.untyped_storage().data_ptr() not in before:
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())


def _pointers() -> set[int]:
    gc.collect()
    return {x.untyped_storage().data_ptr() for x in gc.get_objects() if _real(x)}


def _real(found: object) -> bool:
    """Whether this is a tensor with memory: torch keeps some of shapes alone, once it has compiled something."""
    return isinstance(found, torch.Tensor) and not isinstance(found, FakeTensor)


def _engine(arch: Architecture, layout: Layout, train: Train) -> Engine:
    numerics = Numerics(train.precision, train.recompute, train.recompute_layers)
    how = {"seq_len": train.seq_len, "micro_batch": train.micro_batch, "averages": bool(train.average.half_life)}
    return Engine(arch, layout, numerics, Adam(), **how, memory=train.memory)


def _lasting(
    family: str, how: dict[str, Any], precision: str, generations: int, average: int = 0, remember: int = 0
) -> tuple[int, int]:
    """(bytes held between steps, bytes expected) on this rank."""
    # Tables of generations do not grow as matrices do: with them the model is wider.
    sizes = {"hidden": 384, "ffn": 1536, "layers": 2} if generations > 1 else {"layers": 16}
    arch, train = (
        _arch(family, vocab=128, **sizes),
        settings_of(precision=precision, average=Average(average), memory=remember),
    )
    layout = Layout.make(arch.layers, **how)
    before = _pointers()
    engine = _engine(arch, layout, train)
    # As after growth: within a matrix, some columns are younger.
    engine.describe_generations(
        lambda box: (
            torch.arange(box.box.shape[-1]).mul(generations).div(box.box.shape[-1]).byte().expand(box.box.shape)
        ),
        [0] * generations,
    )
    for owned in engine.owned:  # or no step may be made, and nothing is remembered behind one that is not
        owned.weight.normal_(0.0, 0.02)
    engine.publish_weights()
    samples = _samples(family, train.global_batch, train.seq_len)
    assert not engine.train_step(part(samples, engine.dp_rank, layout.dp), 1e-3, remember=True).trouble
    pp_rank = layout.coordinates(torch.distributed.get_rank())[0]
    expected = memory.of_rank(arch, layout, train, pp_rank, gpu=False)
    held = _held(before)
    del engine
    return held, expected.weights + expected.gradients + expected.optimizer + expected.remembered // 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", [{"dp": 2}, {"tp": 2}, {"pp": 2, "pipeline": [9, 7]}], ids=str)
def test_weights_gradients_and_optimizer(how: dict[str, Any], precision: str) -> None:
    for held, expected in run(2, _lasting, "llama2", how, precision, 1):
        assert held == pytest.approx(expected, rel=0.01)


def test_an_average_of_the_weights() -> None:
    """fp32, cut over the data-parallel ranks."""
    for held, expected in run(2, _lasting, "llama2", {"dp": 2}, "bf16", 1, 1000):
        assert held == pytest.approx(expected, rel=0.01)


def test_what_is_remembered() -> None:
    """Between steps; in one, what was remembered before it is there too."""
    for held, expected in run(2, _lasting, "llama2", {"tp": 2, "sequence_parallel": True}, "bf16", 1, 0, 256):
        assert held == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("family", ["llama2", "gpt2", "bert"])
def test_of_every_family_with_two_generations(family: str) -> None:
    for held, expected in run(2, _lasting, family, {"tp": 2, "sequence_parallel": True}, "bf16", 2):
        assert held == pytest.approx(expected, rel=0.01)


Case = tuple[Architecture, dict[str, Any], Train]


def _kept(arch: Architecture, how: dict[str, Any], train: Train) -> int:
    """Bytes that a forward pass of one micro-batch keeps for its backward pass."""
    layout = Layout.make(arch.layers, **how)
    megatron.make_groups(layout)
    numerics = Numerics(
        train.precision,
        train.recompute,
        train.recompute_layers,
        dropout=train.dropout,
        attention_dropout=train.attention_dropout,
    )
    keys = sample_keys(0, 0, train.micro_batch, dropout.places(arch.depth))
    dropout.begin(dropout.Keys(keys, keys))
    _, _, tp_rank = layout.coordinates(torch.distributed.get_rank())
    (model,) = megatron.build(arch, layout, numerics, seq_len=train.seq_len, pp_rank=0, tp_rank=tp_rank)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in weights:
            kept[pointer] = tensor
        return tensor

    samples = _samples(arch.family, train.micro_batch, train.seq_len)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        families.of(arch.family).model.forward(model, samples)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _all_kept(cases: list[Case]) -> list[int]:
    return [_kept(*case) for case in cases]


CASES: list[tuple[dict[str, int], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({}, {}, {"precision": "fp32"}),
    ({"hidden": 64, "head_dim": 16, "ffn": 512, "vocab": 2000}, {}, {"micro_batch": 1, "seq_len": 128}),
    ({"kv_heads": 4, "heads": 4}, {}, {"recompute": "selective"}),
    ({"kv_heads": 4, "heads": 4}, {}, {"dropout": 0.1, "attention_dropout": 0.1}),
    ({}, {}, {"recompute": "full"}),
    ({}, {}, {"recompute": "full", "recompute_layers": 2}),
    ({}, {"tp": 2}, {}),
    ({}, {"tp": 2, "sequence_parallel": True}, {}),
    ({}, {"tp": 2, "sequence_parallel": True}, {"recompute": "full"}),
]


@pytest.mark.parametrize(
    ("family", "world"),
    [*product(("llama2", "gpt2", "bert"), (1, 2)), ("qwen3", 1), ("transformer_xl", 1), ("convolution_attention", 1)],
)
def test_activations(family: str, world: int) -> None:
    cases: list[Case] = [
        (_arch(family, **sizes), how, settings_of(**changes))
        for sizes, how, changes in CASES
        if how.get("tp", 1) == world
    ]
    for found in run(world, _all_kept, cases):
        for (arch, how, train), kept in zip(cases, found, strict=True):
            expected = memory.of_rank(arch, Layout.make(arch.layers, **how), train, 0, gpu=False).activations
            assert kept == pytest.approx(expected, rel=0.15), (how, train)


def test_a_pipeline_keeps_more_micro_batches_on_earlier_ranks() -> None:
    arch, train = _arch(layers=8), settings_of(global_batch=16)
    one = memory.of_rank(arch, Layout.make(8), train, 0).activations
    ranks = [memory.of_rank(arch, Layout.make(8, pp=4), train, rank).activations for rank in range(4)]
    assert ranks[0] == 4 * 2 * ranks[2] // 4 > ranks[1] > ranks[2]
    assert ranks[3] < one


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12))
@settings(max_examples=40)
def test_what_is_in_flight_is_bounded(pp: int, virtual: int, micro_batches: int) -> None:
    layers = 2 * pp * virtual
    layout = Layout.make(layers, pp=pp, pipeline=[2] * (pp * virtual))
    for rank in range(pp):
        alive = list(memory._in_flight(layout, rank, micro_batches))
        assert 1 <= len(alive) <= micro_batches * virtual
        assert {len(blocks) for blocks in alive} == {2}

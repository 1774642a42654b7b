"""Blocks of unequal work, and layers that several of them call, by arithmetic alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import Architecture
from pretrain.config.train_keys import Train
from pretrain.estimate import flops, memory
from pretrain.families.parameters import parameters, spanning
from pretrain.layout.layout import Layout, balanced_pipeline
from pretrain.layout.work import totals, work_of
from pretrain.report import summary

USUAL = Architecture(
    "llama2", {"vocab": 13, "hidden": 8, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 2, "ffn": 12}
)
HALVES = USUAL.replace({"layers": 8}, kinds=("attention", "mlp") * 4)
SHARED = USUAL.replace({"layers": 2}, calls=(0, 0, 1, 1))
TRAIN = Train(global_batch=4, micro_batch=2, seq_len=16, lr=1e-3, tokens=1000)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 4))
def test_the_busiest_chunk_has_as_little_as_can_be(work: list[int], chunks: int) -> None:
    def sums(split: tuple[int, ...]) -> list[int]:
        ends = [0, *itertools.accumulate(split)]
        return [sum(work[a:b]) for a, b in itertools.pairwise(ends)]

    every = [
        tuple(b - a for a, b in itertools.pairwise((0, *ends, len(work))))
        for ends in itertools.combinations_with_replacement(range(len(work) + 1), chunks - 1)
    ]
    found = sums(balanced_pipeline(work, chunks))
    best = min(max(sums(split)) for split in every)
    assert max(found) == best
    assert sum(s * s for s in found) == min(
        sum(s * s for s in sums(split)) for split in every if max(sums(split)) == best
    )


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5))
def test_equal_blocks_are_split_by_number(blocks: int, chunks: int, each: int) -> None:
    assert balanced_pipeline([each] * blocks, chunks) == balanced_pipeline(blocks, chunks)


def test_a_layer_is_as_much_work_as_its_halves() -> None:
    attention, mlp = work_of(HALVES, 16)[:2]
    (layer, *_) = work_of(USUAL, 16)
    assert (attention.matrices + mlp.matrices, attention.scores + mlp.scores) == (layer.matrices, layer.scores)
    assert mlp.scores == 0
    assert layer.matrices == 2 * 16 * 8 * (2 * 8 + 2 * 4 + 3 * 12)
    assert layer.scores == 2 * 2 * 8 * 16 * 16
    for how in ({}, {"recompute": "selective"}, {"recompute": "full"}):
        assert flops.hardware_flops(HALVES, 16, **how) == flops.hardware_flops(USUAL, 16, **how)
    few = USUAL.replace({"layers": 6}, kinds=("attention",) * 2 + ("mlp",) * 4)
    assert Layout.make(totals(few, 1), pp=2).pipeline == (3, 3)
    assert Layout.make(totals(few, 256), pp=2).pipeline == (1, 5)  # long samples make attention dear


@pytest.mark.parametrize("gpu", [False, True])
def test_memory_of_kinds_and_of_shared_layers(gpu: bool) -> None:
    """Halves keep what layers keep; a shared layer has its weights once, and the activations of every block."""
    one = Layout.make(4)
    usual = memory.of_rank(USUAL, one, TRAIN, 0, gpu=gpu)
    assert memory.of_rank(HALVES, Layout.make(8), TRAIN, 0, gpu=gpu).activations == usual.activations
    shared = memory.of_rank(SHARED, one, TRAIN, 0, gpu=gpu)
    assert shared.activations == usual.activations
    assert usual.gradients - shared.gradients == 4 * (USUAL.parameters() - SHARED.parameters())
    train = replace(TRAIN, recompute="full")
    kept = [memory.of_rank(arch, Layout.make(arch.depth), train, 0, gpu=gpu) for arch in (HALVES, USUAL)]
    assert kept[0].activations - kept[1].activations == 4 * 2 * 2 * 16 * 8  # inputs of four more blocks


def test_a_shared_layer_has_one_owner() -> None:
    arch = USUAL.replace({"layers": 3}, calls=(0, 1, 0, 2, 0))
    layout = Layout.make(arch.depth, pp=2, pipeline=[2, 3])
    first, second = (parameters(arch, layout, rank, 0) for rank in range(2))
    of_layer = "model.layers.0."
    assert [p.name for p in second if p.pieces[0].tensor.startswith(of_layer)] == [
        p.name for p in spanning(arch, layout, 0)
    ]
    for table, owner in ((first, True), (second, False)):
        assert {p.owner for p in table if p.pieces[0].tensor.startswith(of_layer)} == {owner}
    assert all(p.owner for p in second if not p.pieces[0].tensor.startswith(of_layer))
    assert spanning(arch, Layout.make(arch.depth), 0) == []
    assert spanning(USUAL, Layout.make(4, pp=2), 0) == []


def test_tensors_are_counted_by_kind() -> None:
    arch = USUAL.replace({"layers": 3}, kinds=("attention", "attention", "mlp"))
    parts = summary.parts(arch)
    assert sum(part["parameters"] for part in parts) == arch.parameters()
    counts = {part["name"].split(".")[-2]: part["count"] for part in parts}
    assert (counts["q_proj"], counts["down_proj"]) == (2, 1)

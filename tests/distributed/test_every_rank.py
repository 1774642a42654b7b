"""Every stage of the large curricula, built on the meta device as every rank of its layout would build it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from growth import Architecture
from pretrain import config
from pretrain.config import Stage
from pretrain.config.layouts import layout_of, ranks_of
from pretrain.engine import megatron
from pretrain.engine.megatron import Numerics
from pretrain.estimate import memory
from pretrain.families.parameters import parameters
from pretrain.layout import Layout

CONFIGS = Path(__file__).parents[2] / "configs"


def stages(name: str) -> list[Stage]:
    return list(config.load(CONFIGS / f"{name}.yaml").stages)


@pytest.fixture(autouse=True)
def _no_groups() -> Iterator[None]:
    yield
    _leave()


def _leave() -> None:
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _built(arch: Architecture, layout: Layout, stage: Stage, rank: int) -> list[torch.nn.Parameter]:
    """The parameters of a rank, in a group of as many ranks as the layout has, of which this process is all."""
    _leave()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    megatron.make_groups(layout)
    t, (pp_rank, _, tp_rank) = stage.train, layout.coordinates(rank)
    numerics = Numerics(t.precision, t.recompute, t.recompute_layers)
    with torch.device("meta"):
        found = megatron.build(arch, layout, numerics, seq_len=t.seq_len, pp_rank=pp_rank, tp_rank=tp_rank)
    return list(found.parameters())


def _check(stage: Stage, layout: Layout, ranks: Iterator[int]) -> None:
    """Of each rank, what is built is what the plan counts; together the owners hold every parameter once."""
    arch = stage.at_end().architecture()
    owned: dict[tuple[int, int], int] = {}
    for rank in ranks:
        pp_rank, _, tp_rank = layout.coordinates(rank)
        built = _built(arch, layout, stage, rank)
        assert all(parameter.is_meta for parameter in built)
        assert sum(parameter.numel() for parameter in built) == memory.count(arch, layout, pp_rank)
        told = parameters(arch, layout, pp_rank, tp_rank)
        assert [tuple(parameter.shape) for parameter in built] == [p.shape for p in told]
        owned[pp_rank, tp_rank] = sum(prod(piece.box.shape) for p in told if p.owner for piece in p.pieces)
    assert len(owned) == layout.pp * layout.tp
    assert sum(owned.values()) == arch.parameters()


def _one_of_each(layout: Layout) -> Iterator[int]:
    """A rank for each pipeline and tensor-parallel rank: data-parallel ranks build the same."""
    return (rank for rank in range(layout.world) if layout.coordinates(rank)[1] == layout.dp - 1)


@pytest.mark.parametrize("name", ["llama2_55m_to_7b", "llama2_55m_to_7b_head_dim", "bert_to_large"])
def test_every_stage_is_built_as_planned(name: str) -> None:
    for stage in stages(name):
        layout = layout_of(stage, ranks_of(stage, 8))
        _check(stage, layout, _one_of_each(layout))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_rank_of_every_stage() -> None:
    for stage in stages("llama2_55m_to_7b"):
        layout = layout_of(stage, ranks_of(stage, 8))
        _check(stage, layout, iter(range(layout.world)))


OTHERS = [
    Layout.make(32, tp=2, dp=2, sequence_parallel=True),
    Layout.make(32, tp=4, pp=2, dp=1, pipeline=[17, 15]),
    Layout.make(32, tp=8, pp=1, dp=1, sequence_parallel=True),
    Layout.make(32, pp=4, dp=1, pipeline=[4] * 8),
]


@pytest.mark.parametrize("layout", OTHERS, ids=lambda x: f"{x.tp}x{x.pp}x{x.dp}-{x.virtual}")
def test_other_layouts_of_7b(layout: Layout) -> None:
    _check(stages("llama2_55m_to_7b")[-1], layout, _one_of_each(layout))

"""Process groups: one set at a time, kept where the ranks stay as they are."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from pretrain.engine import megatron
from pretrain.layout import Layout
from tests.distributed.harness import run


def _sums() -> list[float]:
    """Over each kind of group, of 1 for each of its ranks."""
    groups = [
        dist.group.WORLD,
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_data_parallel_group(),
    ]
    found = []
    for group in groups:
        one = torch.ones(())
        dist.all_reduce(one, group=group)
        found.append(one.item())
    return found


def _through_layouts() -> list[tuple[int, list[float]]]:
    """(process groups of this process, their sums) under one layout after the other."""
    found = []
    for how in ({"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2}):
        megatron.make_groups(Layout.make(4, **how))
        found.append((len(dist.distributed_c10d._world.pg_map), _sums()))
    return found


def test_another_layout_replaces_them() -> None:
    for found in run(2, _through_layouts):
        assert [sums for _, sums in found] == [[2, 2, 1, 1], [2, 1, 2, 1], [2, 1, 1, 2], [2, 2, 1, 1]]
        first, *others = (count for count, _ in found)
        assert others == pytest.approx([first] * 3, abs=4)  # a pipeline's ends have groups of their own
        assert others[-1] == first


def _chunks() -> list[tuple[int, int | None]]:
    """(which group, Megatron's number of chunks) as only the chunks of a pipeline rank change."""
    found = []
    for pipeline in ([2, 2], [1, 1, 1, 1], [2, 2]):
        megatron.make_groups(Layout.make(4, pp=2, pipeline=pipeline))
        group = parallel_state.get_pipeline_model_parallel_group()
        found.append((id(group), parallel_state.get_virtual_pipeline_model_parallel_world_size()))
    return found


def test_kept_where_only_the_chunks_change() -> None:
    for found in run(2, _chunks):
        assert len({group for group, _ in found}) == 1
        assert [chunks for _, chunks in found] == [None, 2, None]


def _again() -> list[float]:
    """After torch's default group has been made anew: none that came of the old one is used."""
    found = []
    for _ in range(2):
        megatron.make_groups(Layout.make(4))
        found += _sums()
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return found


def test_a_new_default_group() -> None:
    assert run(1, _again) == [[1.0] * 8]

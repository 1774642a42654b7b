"""The layouts that come of a layout: for other layers, for the model before, for a batch."""

from __future__ import annotations

import pytest

from growth import Architecture
from pretrain.layout import Layout

OLD = Architecture(
    "gpt2", {"vocab": 13, "positions": 6, "hidden": 8, "layers": 3, "heads": 4, "head_dim": 2, "ffn": 12}
)


def test_the_same_ranks_for_other_layers() -> None:
    layout = Layout.make(4, tp=2, pp=2, dp=3, sequence_parallel=True)
    assert layout.resized(OLD.replace({"layers": 5}), 6) == Layout.make(5, tp=2, pp=2, dp=3, sequence_parallel=True)


@pytest.mark.parametrize(("tp", "of_the_parent"), [(1, 1), (2, 2), (4, 4), (3, 1), (8, 1)])
def test_the_model_before_is_cut_where_it_can_be(tp: int, of_the_parent: int) -> None:
    """By four at most, the heads; and the others of its ranks read other samples, of the same pipeline rank."""
    layout = Layout.make(8, tp=tp, pp=2, dp=2, pipeline=[2] * 4, sequence_parallel=True)
    before = layout.of_parent(OLD, 6)
    assert (before.tp, before.world, before.pipeline) == (of_the_parent, layout.world, (2, 1))
    assert before.sequence_parallel == (of_the_parent > 1)
    for rank in range(layout.world):
        assert before.coordinates(rank)[0] == layout.coordinates(rank)[0]


def test_the_least_batch() -> None:
    assert Layout.make(4, pp=2, dp=3).batch_unit(5) == 15
    assert Layout.make(4, pp=2, dp=3, pipeline=[1] * 4).batch_unit(5) == 30

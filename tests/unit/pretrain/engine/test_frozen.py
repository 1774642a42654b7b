"""Which parts of a model are frozen: those of which every element is."""

from __future__ import annotations

import pytest

from growth import Architecture, Generations
from pretrain.engine.frozen import Frozen

ARCH = Architecture(
    "llama2", {"vocab": 6, "hidden": 4, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn": 8}
)


def generations(**born: tuple[tuple[int, int], ...]) -> Generations:
    births = {axis: born.get(axis, ((0, n),)) for axis, n in ARCH.sizes.items()}
    return Generations(births, 2)


@pytest.mark.parametrize(
    ("born", "still", "parts", "resting"),
    [
        ({"layers": ((0, 1), (1, 1))}, {0}, {0, "embedding", "head"}, {0}),
        ({"layers": ((0, 1), (1, 1))}, {1}, {1}, {1}),
        ({"layers": ((0, 1), (1, 1))}, {0, 1}, {0, 1, "embedding", "head"}, {0, 1}),
        ({"layers": ((0, 1), (1, 1))}, set(), set(), set()),
        # Half of the neurons of each layer are new: a layer has both generations, so it is not frozen with one of them.
        ({"ffn": ((0, 4), (1, 4))}, {0}, {"embedding", "head"}, set()),
        ({"ffn": ((0, 4), (1, 4))}, {1}, set(), set()),
        ({"vocab": ((0, 4), (1, 2))}, {0}, {0, 1}, set()),
        ({"vocab": ((0, 4), (1, 2))}, {1}, set(), set()),
    ],
)
def test_a_part_is_frozen_when_all_of_it_is(born: dict, still: set[int], parts: set, resting: set[int]) -> None:
    found = Frozen.of(ARCH, generations(**born), still)
    assert found.parts == parts
    assert found.resting == resting


def test_the_head_has_its_norm() -> None:
    """llama2's last norm is the head's part, and of the old generation where only the vocabulary is new."""
    found = Frozen.of(ARCH, generations(vocab=((0, 4), (1, 2))), {0})
    assert "head" not in found.parts

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growth import Box
from growth.random.normals import normals
from growth.random.philox import normal
from tests.unit.growth.models import boxes


@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2**40))
def test_any_box_is_the_same_draw(data: st.DataObject, shape: list[int], seed: int) -> None:
    box = data.draw(boxes(tuple(shape)))
    whole = normal(seed, "w", tuple(shape), Box.whole(shape))
    assert torch.equal(normal(seed, "w", tuple(shape), box), whole[box.slices()])


def test_boxes_longer_than_a_chunk() -> None:
    for shape in ((3, 50_001), (50_001, 3), (99, 2_000)):
        whole = normal(1, "w", shape, Box.whole(shape))
        a, b = shape
        for box in (Box((0, 1), (a, b - 1)), Box((1, 0), (a, b)), Box((a - 2, b - 1), (a - 1, b)), Box((1, 0), (a, 1))):
            assert torch.equal(normal(1, "w", shape, box), whole[box.slices()])


def test_standard_normal() -> None:
    x = normal(1, "w", (1_000_000,), Box.whole((1_000_000,))).double()
    assert abs(x.mean()) < 5e-3
    assert abs(x.std() - 1) < 5e-3
    assert abs((x**4).mean() - 3) < 5e-2
    assert abs((x[1:] * x[:-1]).mean()) < 5e-3
    quantiles = torch.quantile(x[:10_000], torch.tensor([0.1587, 0.5, 0.8413], dtype=torch.float64))
    assert torch.allclose(quantiles, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), atol=0.05)


def test_polynomials_are_box_and_muller() -> None:
    words = np.random.Philox(key=3).random_raw(100_000)
    words[:2] = [0, 2**64 - 1]
    u = ((words >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32
    v = (words & np.uint64(2**32 - 1)).astype(np.float64) / 2**32
    drawn = np.empty(len(words), dtype=np.float32)
    normals(words, 1.0, drawn)
    assert np.abs(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v) - drawn).max() < 1e-6


def test_into_a_part_of_another_tensor_and_scaled() -> None:
    box = Box((1, 5), (4, 60))
    out = torch.zeros(5, 100)
    normal(3, "w", (9, 64), box, std=0.02, out=out[1:4, 20:75])
    assert torch.equal(out[1:4, 20:75], normal(3, "w", (9, 64), box) * 0.02)
    out[1:4, 20:75] = 0
    assert not out.any()


@pytest.mark.parametrize(("seed", "name"), [(1, "w"), (0, "v")])
def test_seed_and_name_matter(seed: int, name: str) -> None:
    box = Box.whole((64,))
    assert (normal(0, "w", (64,), box) != normal(seed, name, (64,), box)).all()


def test_values_are_pinned() -> None:
    """Checkpointed plans are replayed, so the numbers of an address must never change."""
    drawn = normal(7, "model.embed_tokens.weight", (4, 3), Box((1, 1), (3, 3)))
    assert [[x.hex() for x in row] for row in drawn.tolist()] == PINNED


PINNED = [["0x1.428fd00000000p-2", "-0x1.551be20000000p+0"], ["0x1.14de900000000p+0", "0x1.2de0960000000p-1"]]

"""Rows of a vocabulary in another order."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from growth import Architecture, Box
from pretrain.hf.rows import reordered

SIZES = {"vocab": 300, "hidden": 4, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 4, "ffn": 4}
ARCH = Architecture("llama2", SIZES)
VALUES = torch.arange(1200.0).view(300, 4)


@given(st.integers(0, 2**32 - 1), st.integers(0, 299), st.integers(1, 300), st.booleans())
def test_any_box_in_any_order(seed: int, start: int, rows: int, shuffled: bool) -> None:
    """Equal to indexing the whole tensor, whatever the order and the box."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(300) if shuffled else np.roll(np.arange(300), seed % 300)
    box = Box((start, 1), (min(300, start + rows), 3))
    tensor = ARCH.tensor("lm_head.weight")
    found = reordered(lambda b: VALUES[b.slices()], tensor, order, box)
    assert torch.equal(found, VALUES[torch.from_numpy(order)][box.slices()])


def test_few_reads_where_rows_are_in_order() -> None:
    """A block of specials moved, as merge age does: two reads, and no byte that is not asked for."""
    order = np.concatenate([np.arange(3), np.arange(100_000, 100_256), np.arange(3, 100_000)])
    arch = ARCH.replace({"vocab": len(order), "hidden": 64})
    read: list[Box] = []

    def values(box: Box) -> torch.Tensor:
        read.append(box)
        return torch.zeros(box.shape)

    reordered(values, arch.tensor("model.embed_tokens.weight"), order, Box((0, 0), (1000, 64)))
    assert len(read) == 2
    assert sum(box.shape[0] for box in read) == 1000


def test_other_tensors_stay() -> None:
    tensor = ARCH.tensor("model.layers.0.mlp.up_proj.weight")
    values = torch.rand(4, 4)
    found = reordered(lambda b: values[b.slices()], tensor, np.arange(300)[::-1], Box((1, 0), (3, 4)))
    assert torch.equal(found, values[1:3])

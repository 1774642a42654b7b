"""Values on their way to a device, here without one: pieces arrive where they belong, whatever the strides."""

from __future__ import annotations

import pytest
import torch

from pretrain.engine.staging import Staging


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pieces_arrive_in_order(count: int) -> None:
    staging = Staging(12, pinned=False)
    matrix = torch.zeros(4 * count, 5)
    for n in range(count):
        rows = matrix[4 * n : 4 * n + 4, 1:4]  # not contiguous
        staging.put(rows, lambda out, n=n: out.copy_(torch.arange(12.0).view(4, 3) + 100 * n))
    expected = torch.arange(12.0).view(4, 3) + 100 * torch.arange(count).view(-1, 1, 1)
    assert torch.equal(matrix[:, 1:4], expected.flatten(0, 1))
    assert not matrix[:, 0].any()
    assert not matrix[:, 4].any()


def test_a_piece_is_contiguous_and_on_the_host() -> None:
    staging, seen = Staging(6, pinned=False), []

    def make(out: torch.Tensor) -> None:
        seen.append((out.shape, out.is_contiguous(), out.device.type))
        out.fill_(1.0)

    staging.put(torch.zeros(2, 3), make)
    staging.put(torch.zeros(4), make)
    assert seen == [((2, 3), True, "cpu"), ((4,), True, "cpu")]

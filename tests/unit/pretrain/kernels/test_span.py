"""Attention within spans, against the same in a few lines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growth.span import keys_of, reach
from pretrain.kernels.dropout import Drop, drop_weights
from pretrain.kernels.span import Within, _near, attend_spans, flex

SPANS = [0.4, 3.5, 40.2, 100.7]


def oracle(q: Tensor, k: Tensor, v: Tensor, z: Tensor, within: Within) -> Tensor:
    """m exp(score) / sum m exp(score), with all of [S, K] held."""
    queries, keys, heads = q.shape[2], k.shape[2], q.shape[1]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    distance = (torch.arange(queries) + keys - queries)[:, None] - torch.arange(keys)
    mask = ((within.ramp + z[:, None, None] - distance) / within.ramp).clamp(0, 1) * (distance >= 0)
    if within.begins is not None:
        mask = mask * (torch.arange(keys) >= within.begins[:, :, None])[:, None]
    weights = mask * torch.exp(q @ k.mT * within.scale)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights if within.drop is None else drop_weights.eager(weights, *within.drop)) @ v


def drawn(queries: int, keys: int, groups: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(queries)
    shapes = ((2, 4, queries, 8), (2, groups, keys, 8), (2, groups, keys, 8))
    return [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "groups", "ramp", "documents", "dropped"),
    [
        (200, 200, 2, 32, False, False),
        (130, 330, 4, 8, False, False),  # keys of a memory before them
        (150, 150, 1, 5, True, True),
        (1, 1, 4, 32, False, False),
    ],
)
def test_values_and_gradients(
    queries: int, keys: int, groups: int, ramp: int, documents: bool, dropped: bool, dtype: torch.dtype
) -> None:
    q, k, v = drawn(queries, keys, groups, dtype)
    z = torch.tensor(SPANS, dtype=dtype, requires_grad=True)
    begins = (torch.arange(queries) // 47 * 47).expand(2, -1) if documents else None
    drop = Drop(torch.arange(8, dtype=torch.int32).view(2, 4) * 12345, 0.2, 4) if dropped else None
    within = Within(ramp, reach(max(SPANS), ramp), 0.3, begins, drop)
    out, expected = attend_spans(q, k, v, z, within), oracle(q, k, v, z, within)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out, expected, rtol=bound, atol=bound)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(x, (q, k, v, z), grad) for x in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound * max(1, float(other.abs().max())))


def test_at_corners() -> None:
    """Whole numbers of tokens: values are the oracle's, and a head that sees all is usual attention."""
    q, k, v = drawn(140, 140, 2, torch.float64)
    z = torch.tensor([0.0, 1.0, 32.0, 1000.0], dtype=torch.float64)
    within = Within(32, reach(1000, 32), 0.3)
    out = attend_spans(q, k, v, z, within)
    torch.testing.assert_close(out, oracle(q, k, v, z, within))
    usual = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out[:, 3], usual[:, 3])


def test_bf16_sums_in_fp32() -> None:
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in drawn(200, 200, 2, torch.float32))
    z, within = torch.tensor(SPANS, requires_grad=True), Within(32, reach(max(SPANS), 32), 0.3)
    out = attend_spans(q, k, v, z, within)
    wide = [x.detach().float() for x in (q, k, v)]
    torch.testing.assert_close(out.float(), oracle(*wide, z, within), rtol=2e-2, atol=2e-2)
    out.sum().backward()
    assert [x.grad.dtype for x in (q, z) if x.grad is not None] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(("queries", "keys", "documents"), [(200, 200, True), (130, 330, False)])
def test_flex_attention(queries: int, keys: int, documents: bool) -> None:
    """The mask and the scores of torch's flex attention, and the blocks that its kernel goes through. Its backward pass
    is for CUDA alone: see tests/cuda."""
    q, k, v = (x.detach() for x in drawn(queries, keys, 2, torch.float32))
    z = torch.tensor([0.0, 32.0, 40.2, 100.7])
    begins = (torch.arange(queries) // 47 * 47).expand(2, -1) if documents else None
    within = Within(32, reach(100.7, 32), 0.3, begins)
    torch.testing.assert_close(flex(q, k, v, z, within, compiled=False), oracle(q, k, v, z, within))
    for far in (0, 31, 127, 128, 129, 1000):
        blocks = _near(queries, keys, far, q.device).to_dense()[0, 0]
        place = torch.arange(queries)[:, None] + keys - queries
        seen = (torch.arange(keys) <= place) & (torch.arange(keys) >= place - far)
        computed = blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)[:queries, :keys]
        assert not (seen & (computed == 0)).any()
        assert blocks.sum() <= len(blocks) * (2 + -(-far // 128))


def test_keys_are_counted_in_blocks() -> None:
    assert [keys_of(z, 32, 2048) for z in (0, 32, 32.5, 33, 96, 97.5, 5000)] == [128, 128, 128, 128, 192, 256, 2048]
    assert [keys_of(z, 1, 2048) for z in (0, 1)] == [64, 128]

"""The generator of dropout: how evenly it drops, and that nothing decides but the address."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.engine.dropout import sample_keys, step_key
from pretrain.kernels.dropout import Drop, Dropout, add_bias_drop_channels, drop_channels, drop_weights, kept
from pretrain.kernels.fused import lacking

SIGMAS = 5.0
POSITIONS, SAMPLES, CHANNELS = 96, 8, 320


def keys(step: int = 0, place: int = 1, samples: int = SAMPLES) -> Tensor:
    return sample_keys(step_key(7, "stage", step), 0, samples, place + 1)[place]


def masks(p: float, **where: int) -> np.ndarray:
    """[positions, samples, channels], 1 where an element stays."""
    rows = torch.arange(POSITIONS, dtype=torch.int32)[:, None]
    return kept(keys(**where), rows, CHANNELS, p).numpy().astype(np.float64)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_as_many_as_asked_for(p: float) -> None:
    """Of all elements, and of those of each position, sample and channel."""
    found = masks(p)
    for axes in [(0, 1, 2), (0, 1), (0, 2), (1, 2)]:
        count = np.prod([found.shape[axis] for axis in axes])
        off = np.abs(found.mean(axis=axes) - (1 - p))
        assert off.max() < SIGMAS * np.sqrt(p * (1 - p) / count) + 1 / count


def test_independent_of_every_neighbour() -> None:
    """Another step, place, sample, position or channel: correlations of half a million elements are noise."""
    centred = masks(0.5) - 0.5
    others = {
        "step": masks(0.5, step=1) - 0.5,
        "place": masks(0.5, place=2) - 0.5,
        **{f"sample {n}": np.roll(centred, n, 1) for n in (1, 3)},
        **{f"position {n}": np.roll(centred, n, 0) for n in (1, 2, 32)},
        **{f"channel {n}": np.roll(centred, n, 2) for n in (1, 2, 3, 64, 128)},
        "both": np.roll(centred, (1, 1), (0, 2)),
    }
    for name, other in others.items():
        assert abs((centred * other).mean() * 4) < SIGMAS / np.sqrt(centred.size), name
    triples = centred * np.roll(centred, 1, 2) * np.roll(centred, 2, 2)
    assert abs(triples.mean() * 8) < SIGMAS / np.sqrt(centred.size)


def test_nothing_but_the_address_decides() -> None:
    """A part of the samples, of the positions and of the heads drops what the whole does; keys differ in every part."""
    x = torch.ones(POSITIONS, SAMPLES, CHANNELS)
    whole = drop_channels.eager(x, keys(), 0.3, 0)
    assert torch.equal(drop_channels.eager(x[40:60, 2:5], keys()[2:5], 0.3, 40), whole[40:60, 2:5])
    later = sample_keys(step_key(7, "stage", 0), 2, 3, 2)[1]
    assert torch.equal(later, keys()[2:5])
    weights = torch.ones(SAMPLES, 6, 16, 16)
    whole = drop_weights.eager(weights, keys(), 0.3, 0)
    assert torch.equal(drop_weights.eager(weights[3:, 2:4], keys()[3:], 0.3, 2), whole[3:, 2:4])
    steps = {step_key(seed, stage, step) for seed in (0, 1) for stage in ("a", "b") for step in range(5)}
    assert len(steps) == 20
    table = sample_keys(step_key(7, "stage", 0), 0, 64, 10).reshape(-1, 4)
    assert len(torch.unique(table, dim=0)) == 640


def test_gradient_is_dropped_alike() -> None:
    """What is dropped has no gradient, the rest 1 / (1 - p) of it; no tensor is kept but the keys."""
    x = torch.randn(POSITIONS, SAMPLES, CHANNELS, requires_grad=True)
    out = Dropout.apply(x, Drop(keys(), 0.25, 5), drop_channels.eager)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(out, x * x.grad)
    assert x.grad.unique().tolist() == [0.0, pytest.approx(4 / 3)]


@pytest.mark.skipif(bool(lacking("cpu")), reason=f"NOT TESTED: {lacking('cpu')}")
def test_compiled_drops_the_same() -> None:
    """Bit for bit: a kernel and single operations differ in rounding at most, never in what they drop."""
    x, bias = torch.randn(POSITIONS, SAMPLES, CHANNELS), torch.randn(CHANNELS)
    compiled = add_bias_drop_channels(x, bias, keys(), 0.1, 3)
    eager = add_bias_drop_channels.eager(x, bias, keys(), 0.1, 3)
    assert torch.equal(compiled == 0, eager == 0)
    torch.testing.assert_close(compiled, eager)

"""The sinusoidal embedding of distances (Dai et al. 2019, section 3.3; Vaswani et al. 2017, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoid(distance_K: Tensor, channels: int) -> Tensor:
    """r of each distance, float64 [K, channels]: sines of all frequencies, then their cosines."""
    frequency = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=distance_K.device) / channels)
    angle = distance_K.double()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)

"""Norms for Megatron-core's layer spec that work under sequence parallelism.

There each tensor-parallel rank normalises its part of the sequence, so a parameter's gradient is a partial sum; the
mark `sequence_parallel` asks the engine to add them.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from pretrain.kernels.norm import AddLayerNorm, AddRMSNorm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with Megatron-core's constructor."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm with Megatron-core's constructor."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class FusedRMSNorm(RMSNorm):
    """RMSNorm as kernels, alone or with the addition before it."""

    def add(self, hidden: Tensor, branch: Tensor | None = None, bias: None = None) -> tuple[Tensor, Tensor]:
        """(hidden + branch, its norm); hidden and its norm without a branch, which here has no bias."""
        return AddRMSNorm.apply(hidden, branch, self.weight, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x)[1]


class FusedLayerNorm(LayerNorm):
    """LayerNorm as kernels, alone or with the addition before it."""

    def add(self, hidden: Tensor, branch: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(hidden + branch + bias, its norm); hidden and its norm without a branch."""
        return AddLayerNorm.apply(hidden, branch, bias, self.weight, self.bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x)[1]


class _OfHeads:
    """Of a norm over the channels of each head: a tensor-parallel rank has some of the heads, and so a partial sum of
    the gain's gradient, whether it has a part of the sequence or all of it."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config, hidden_size, eps)  # type: ignore[call-arg]
        self.weight.sequence_parallel = config.tensor_model_parallel_size > 1  # type: ignore[attr-defined]


class HeadRMSNorm(_OfHeads, RMSNorm):
    """RMSNorm of queries or keys."""


class FusedHeadRMSNorm(_OfHeads, FusedRMSNorm):
    """The same as kernels."""

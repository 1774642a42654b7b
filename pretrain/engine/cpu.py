"""Megatron-core on a machine without CUDA.

Megatron-core 0.16 names the CUDA device in a handful of places. This module is the whole adaptation; it is applied
once, and only where no CUDA device exists, so that CPU (gloo) and CUDA (nccl) share every other line.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from pretrain.runtime import malloc


class _TorchOnCpu(ModuleType):
    """The `torch` that Megatron's schedules see: `device="cuda"` means the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, device="cpu" if device == "cuda" else device, **kwargs)


@functools.cache
def adapt() -> None:
    """Make Megatron-core run on the CPU. Does nothing where a CUDA device exists."""
    if torch.cuda.is_available():
        return
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random

    def get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    malloc.keep_freed()
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.manual_seed = torch.manual_seed  # type: ignore[assignment]
    torch.cuda.get_rng_state = get_rng_state
    schedules.torch = _TorchOnCpu("torch")
    random._get_cuda_rng_state = get_rng_state
    random._set_cuda_rng_state = set_rng_state

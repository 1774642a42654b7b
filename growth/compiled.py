"""Compiled loops, kept beside their source like Python's own bytecode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit


def compiled(signature: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: numba, with numpy's division and without a lock on the interpreter. With a signature it compiles
    when it is imported, else at its first call; where it may not write, in every process again."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signatures = [signature] if signature else []
        try:
            return njit(*signatures, error_model="numpy", nogil=True, cache=True)(function)
        except RuntimeError:  # There is no folder for the cache. Any other error is raised again below.
            return njit(*signatures, error_model="numpy", nogil=True)(function)

    return decorate


def flat(x: torch.Tensor) -> tuple[np.ndarray, int]:
    """The memory from the first to the last element of a matrix, and from row to row: a compiled loop over that
    becomes vector instructions where one over a strided matrix would not."""
    if x.stride(1) != 1:
        x = x.contiguous()
    return x.as_strided(((x.shape[0] - 1) * x.stride(0) + x.shape[1],), (1,)).numpy(), x.stride(0)

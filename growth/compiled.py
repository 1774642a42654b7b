"""Compiled loops, kept beside their source like Python's own bytecode."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(signature: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: numba, with numpy's division and without a lock on the interpreter. With a signature it compiles
    when it is imported, else at its first call; where it may not write, in every process again."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signatures = [signature] if signature else []
        try:
            return njit(*signatures, error_model="numpy", nogil=True, cache=True)(function)
        except RuntimeError:  # no folder for the cache; any other error comes again
            return njit(*signatures, error_model="numpy", nogil=True)(function)

    return decorate

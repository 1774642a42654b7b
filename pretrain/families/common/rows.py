"""Rows that the tables of the families share."""

from dataclasses import replace

from growth.family import Dim, Init, TensorSpec

READS = Dim(("hidden",), "read")
WRITES = Dim(("hidden",), "write")
GAIN = Dim(("hidden",), "gain")
SHIFT = Dim(("hidden",), "shift")


def linear(name: str, out: Dim, into: Dim, init: Init = "normal") -> tuple[TensorSpec, TensorSpec]:
    """A matrix [out, into] and its bias."""
    return TensorSpec(f"{name}.weight", (out, into), init), TensorSpec(f"{name}.bias", (out,), "zero")


def layer_norm(name: str, gain: Dim = GAIN, shift: Dim = SHIFT) -> tuple[TensorSpec, TensorSpec]:
    """The weight and the bias of a LayerNorm."""
    return TensorSpec(f"{name}.weight", (gain,), "one"), TensorSpec(f"{name}.bias", (shift,), "zero")


def of(kinds: tuple[str, ...], *rows: TensorSpec) -> tuple[TensorSpec, ...]:
    """Rows of the layers of these kinds."""
    return tuple(replace(row, kinds=kinds) for row in rows)

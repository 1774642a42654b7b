"""Counts the parameters of a model by the part they are in: embedding, attention and so on."""

from collections.abc import Sequence

from growth import Architecture
from growth.family import GENERAL, TensorSpec

PARTS = ("embedding", "norms", "head", "attention", "MLP")


def parameters_by_part(arch: Architecture) -> dict[str, int]:
    """How many parameters a model has by part, in the order of PARTS."""
    parts = parts_of(arch.rows)
    numbers = dict.fromkeys(PARTS, 0)
    for tensor in arch.tensors().values():
        numbers[parts[tensor.spec.name]] += tensor.numel
    return numbers


def parts_of(rows: Sequence[TensorSpec]) -> dict[str, str]:
    """The part of each row of an architecture, which follows from its place, its roles and its axes."""
    parts, place, branch = {}, "embedding", "attention"
    for row in rows:
        if row.layered:
            place = "head"  # rows after the layers that are not in one belong to the head
            if len(row.dims) > 1:  # a bias belongs to the matrix before it
                branch = "MLP" if any("ffn" in dim.axes for dim in row.dims) else "attention"
        norm = GENERAL[row.dims[0].role] in ("gain", "shift")
        parts[row.name] = "norms" if norm else branch if row.layered else place
    return parts

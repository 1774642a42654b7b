"""What the parameters of a model are for."""

from growth import Architecture
from growth.family import GENERAL, Family

PARTS = ("embedding", "norms", "head", "attention", "MLP")


def parameters_by_part(arch: Architecture) -> dict[str, int]:
    """Parameters of a model by part, in the order of PARTS."""
    parts = parts_of(arch.table)
    numbers = dict.fromkeys(PARTS, 0)
    for tensor in arch.tensors().values():
        numbers[parts[tensor.spec.name]] += tensor.numel
    return numbers


def parts_of(table: Family) -> dict[str, str]:
    """Row of a family's table -> its part, by its place in the model, its roles and its axes."""
    parts, place, branch = {}, "embedding", "attention"
    for row in table.tensors:
        if row.layered:
            place = "head"  # what is no part of a layer lies behind them from here on
            if len(row.dims) > 1:  # a bias belongs to the matrix before it
                branch = "MLP" if any("ffn" in dim.axes for dim in row.dims) else "attention"
        norm = GENERAL[row.dims[0].role] in ("gain", "shift")
        parts[row.name] = "norms" if norm else branch if row.layered else place
    return parts

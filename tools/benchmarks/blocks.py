"""The other way to give generations rates of their own: a parameter and a matrix product for each block.

A matrix whose rows and columns were born in n events falls into 2n - 1 rectangles of one age: with every event come new
rows over all columns so far, and new columns of the rows before. This is what optimizers with parameter groups ask for,
and what generations inside the optimizer are measured against.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlockLinear(nn.Module):
    """A linear layer without bias, [out, in], both axes grown by equal parts in `count` events."""

    def __init__(self, weight: Tensor, count: int) -> None:
        super().__init__()
        rows, columns = ([size * n // count for n in range(count + 1)] for size in weight.shape)
        self.columns = list(pairwise(columns))
        rectangles = [weight[: rows[1], : columns[1]]]
        for n in range(1, count):
            rectangles += [
                weight[: rows[n], columns[n] : columns[n + 1]],
                weight[rows[n] : rows[n + 1], : columns[n + 1]],
            ]
        self.weights = nn.ParameterList(rectangle.detach().clone() for rectangle in rectangles)
        self.generations = [0, *(n for n in range(1, count) for _ in range(2))]

    def forward(self, x_BSI: Tensor) -> Tensor:
        weights = iter(self.weights)
        y_BSO = F.linear(x_BSI[..., slice(*self.columns[0])], next(weights))
        for start, stop in self.columns[1:]:
            old = y_BSO + F.linear(x_BSI[..., start:stop], next(weights))
            y_BSO = torch.cat([old, F.linear(x_BSI[..., :stop], next(weights))], dim=-1)
        return y_BSO


def split(model: nn.Module, count: int) -> list[list[nn.Parameter]]:
    """Replaces every linear layer of a model by its blocks; returns the parameters of each generation.

    What is no linear layer (embeddings, gains) stays whole and is counted with the first: that flatters this way.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, BlockLinear(child.weight, count))
    groups: list[list[nn.Parameter]] = [[] for _ in range(count)]
    blocked = set()
    for module in model.modules():
        if isinstance(module, BlockLinear):
            for generation, weight in zip(module.generations, module.weights, strict=True):
                groups[generation].append(weight)
                blocked.add(weight)
    groups[0] += [p for p in model.parameters() if p not in blocked]
    return groups

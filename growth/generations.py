"""Generations: in which growth event each index of each axis, and each layer, was born."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from growth.adapters import RANK
from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.family import LAYERS
from growth.maps import AxisMap, LayerMap
from growth.step import Step

_MOST = 256  # The generation of an element is stored as a byte.


@dataclass(frozen=True)
class Generations:
    """`births` holds, for every axis and "layers", runs (generation, count) over the indices; `count` generations
    exist. An element's generation is the latest among its layer and its indices along the axes of its dimensions."""

    births: Mapping[str, tuple[tuple[int, int], ...]]
    count: int

    @staticmethod
    def first(arch: Architecture) -> Generations:
        """A model of one generation, 0."""
        return Generations({axis: ((0, n),) if n else () for axis, n in arch.sizes.items()}, 1)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.births.items())), self.count))

    def along(self, axis: str) -> np.ndarray:
        """uint8 [size of the axis]: the generation of each index."""
        runs = self.births[axis]
        return np.repeat(np.array([g for g, _ in runs], dtype=np.uint8), [n for _, n in runs])

    def of(self, tensor: LogicalTensor, box: Box) -> torch.Tensor:
        """uint8 of `box.shape`: the generation of each element of this region of a tensor."""
        layer = 0 if tensor.layer is None else int(self.along(LAYERS)[tensor.layer])
        out = torch.full(box.shape, layer, dtype=torch.uint8)
        for d, dim in enumerate(tensor.spec.dims):
            births = np.zeros(1, dtype=np.uint8)
            for axis in dim.axes:
                births = np.maximum(births[:, None], self.along(axis)[None, :]).reshape(-1)
            shape = [-1 if i == d else 1 for i in range(out.dim())]
            torch.maximum(out, torch.from_numpy(births[box.start[d] : box.stop[d]]).reshape(shape), out=out)
        return out

    def present(self, tensor: LogicalTensor) -> set[int]:
        """The generations of the elements of a tensor."""
        generations = {0 if tensor.layer is None else int(self.along(LAYERS)[tensor.layer])}
        for dim in tensor.spec.dims:
            for axis in dim.axes:
                generations = {max(a, g) for a in generations for g, n in self.births[axis] if n}
        return generations

    def grow(self, steps: tuple[Step, ...], by_moments: bool = True) -> Generations:
        """The generations after an event of these steps: what is born in it makes one generation, `count`.

        With `by_moments`, new elements that keep those of their source keep its generation too, and
        everything whose moments are reset joins the newest, so that Adam's step is that of the moments.

        Raises GrowthError when the steps begin at another size, or when there would be more than 256 generations.
        """
        births = {axis: self.along(axis) for axis in self.births}
        newest = self.count
        for step in steps:
            maps: dict[str, AxisMap | LayerMap] = {**step.axes, **({LAYERS: step.layers} if step.layers else {})}
            for axis, m in maps.items():
                known = births.get(axis, np.zeros(0, dtype=np.uint8))
                if len(known) != m.old:
                    raise GrowthError(f"{axis}: the plan begins at {m.old}, but the generations know {len(known)}")
                if newest >= _MOST and (m.born | (m.source[:, 0] < 0)).any():
                    raise GrowthError(f"{axis}: at most {_MOST} generations are kept; grow in fewer events")
                source = m.source[:, 0]
                old = source >= 0
                if not by_moments or step.moments.new == "reset":
                    old &= ~m.born
                grown_births = np.full(m.new, newest, dtype=np.uint8)
                grown_births[old] = known[source[old]]
                births[axis] = grown_births
            if step.old.adapters and not step.new.adapters:
                del births[RANK]
            if by_moments and step.moments.old == "reset":
                if newest >= _MOST:
                    raise GrowthError(f"moments: at most {_MOST} generations are kept; grow in fewer events")
                births = {axis: np.full_like(b, newest) for axis, b in births.items()}
        grown = any((b == newest).any() for b in births.values())
        return Generations({axis: _runs(b) for axis, b in births.items()}, newest + 1 if grown else newest)

    def merged(self, first: int) -> Generations:
        """The first of them, as many as this, as one; the others follow it. GrowthError when there are fewer."""
        if not 1 <= first <= self.count:
            raise GrowthError(f"{first} generations cannot be merged: there are {self.count}")
        births = {axis: _runs(np.maximum(self.along(axis), first - 1) - np.uint8(first - 1)) for axis in self.births}
        return Generations(births, self.count - first + 1)

    def to_json(self) -> dict[str, Any]:
        return {"births": {axis: [list(r) for r in runs] for axis, runs in self.births.items()}, "count": self.count}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Generations:
        births = {axis: tuple((int(g), int(n)) for g, n in runs) for axis, runs in data["births"].items()}
        return Generations(births, data["count"])


def _runs(values: np.ndarray) -> tuple[tuple[int, int], ...]:
    if not len(values):
        return ()
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return tuple((int(values[a]), b - a) for a, b in pairwise(edges))

"""Learning the factors of a dense growth (Wang et al., 2023, LiGO): a few hundred steps on the factors alone.

In one process, with the reference model, at any size that fits. What it returns is a policy for growth.between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from typing import Any

import torch

from growth.architecture import Architecture, LogicalTensor
from growth.box import Box
from growth.errors import GrowthError
from growth.evaluate.box_values import Read
from growth.family import GENERAL, Dim
from growth.maps import over_further
from growth.operators.dense import HEADS, option
from growth.random import philox

AXES = ("hidden", "ffn", "heads", "kv_heads")
NOISE = 10 ** (-10 / 20)  # over a reader's share: a signal-to-noise ratio of 10 dB, as of `replicate`
Factors = dict[tuple[str, str], torch.Tensor]
"""(axis, role) -> [new, old], of heads with all channels: [new * head_dim, old * head_dim]; ("layers", "weights")."""


class Learner:
    """Learns the policy {axis: {"operator": "dense", ...}} that grows `old` to `new`, with Adam: a matrix for each role
    along an axis that the family's table tells apart. It starts at copies: stacked layers, tiled channels whose readers
    share.

    Raises GrowthError for axes other than layers, hidden, heads, kv_heads and ffn.
    """

    def __init__(self, read: Read, old: Architecture, new: Architecture, *, lr: float = 1e-3) -> None:
        grown = [axis for axis in new.sizes if new.sizes[axis] != old.sizes[axis]]
        if other := sorted(set(grown) - {*AXES, "layers"}):
            raise GrowthError(f"{', '.join(other)}: dense growth is learned for layers, {', '.join(AXES)} only")
        if {"heads", "kv_heads"} & set(grown):  # One operator makes both, so that it needs the factors of both.
            both = [axis for axis in ("heads", "kv_heads") if axis in new.sizes]
            grown = [*(axis for axis in grown if axis not in both), *both]
        self._old, self._new = old, new
        self._weights = {name: read("weight", name, Box.whole(t.shape)).float() for name, t in old.tensors().items()}
        self._factors = {
            (axis, role): _tiled(axis, _size(old, axis), _size(new, axis), role)
            for axis in grown
            for role in _roles(old, axis)
        }
        self._optimizer = torch.optim.Adam(list(self._factors.values()), lr=lr)
        self.steps = 0

    def step(self, objective: Callable[[Read], torch.Tensor]) -> float:
        """One step on `objective(model)`, a loss of the grown model that `model` reads, differentiable (float32); gives
        the loss before it."""

        def grow(kind: str, name: str, box: Box) -> torch.Tensor:
            return _grown(self._new.tensor(name), self._old, self._weights, self._factors)[box.slices()]

        self._optimizer.zero_grad()
        value = objective(grow)
        value.backward()
        self._optimizer.step()
        self.steps += 1
        return value.item()

    def policy(self) -> dict[str, Any]:
        """What it has learned, for growth.between."""
        return _policy(self._factors)

    def state(self) -> dict[str, torch.Tensor]:
        """What another Learner of the same growth needs to go on: factors and Adam's moments."""
        state = {"steps": torch.tensor(self.steps)}
        for (axis, role), factor in self._factors.items():
            state[f"{axis}.{role}"] = factor.detach()
            state |= {f"{axis}.{role}.{key}": value for key, value in self._optimizer.state[factor].items()}
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from the `state` of another one."""
        self.steps = int(state["steps"])
        for (axis, role), factor in self._factors.items():
            name = f"{axis}.{role}"
            factor.data.copy_(state[name])
            moments = {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
            self._optimizer.state[factor] = {key: x.clone() for key, x in moments.items()}


def with_axes(arch: Architecture, axes: Collection[str], other: Architecture) -> Architecture:
    """An architecture with these axes, where it has them, of another's sizes; with layers go their kinds and calls."""
    layers: dict[str, Any] = {"kinds": other.kinds, "calls": other.calls} if "layers" in axes else {}
    return arch.replace({axis: other.sizes[axis] for axis in axes if axis in arch.sizes}, **layers)


def map_flops(old: Architecture, new: Architecture) -> int:
    """FLOPs of making every weight of the new model once: of the products with the factors of each axis that grows."""
    flops = 0
    for tensor in new.tensors().values():
        numel = prod(dim.size(old.sizes) for dim in tensor.spec.dims)
        if tensor.layer is not None and old.layers != new.layers:
            flops += 2 * numel * old.layers
        for dim in tensor.spec.dims:
            axis = dim.axes[0]
            if axis in AXES and old.sizes[axis] != new.sizes[axis]:
                whole = dim.size(old.sizes) == _size(old, axis)
                flops += 2 * numel * (_size(new, axis) if whole else new.sizes[axis])
                numel = numel // old.sizes[axis] * new.sizes[axis]
    return flops


def _size(arch: Architecture, axis: str) -> int:
    """The indices that the factors of an axis tell apart."""
    return arch.sizes[axis] * (arch.sizes["head_dim"] if axis in HEADS else 1)


def _roles(arch: Architecture, axis: str) -> list[str]:
    """The roles along an axis that have a factor of their own; "weights" stands for sums of layers."""
    if axis == "layers":
        return ["weights"]
    dims = [dim for row in arch.table.tensors for dim in row.dims if axis in dim.axes]
    return sorted({_role(dim.role) for dim in dims if not _one_each(dim)})


def _one_each(dim: Dim) -> bool:
    """Whether there is one number for each head, such as its span."""
    return dim.axes[0] in HEADS and len(dim.axes) == 1


def _role(role: str) -> str:
    """The role whose factor a dimension takes."""
    if role in ("query", "key", "gate"):
        return role
    return "read" if GENERAL[role] == "read" else "write"


def _tiled(axis: str, old: int, new: int, role: str) -> torch.Tensor:
    """Copies in turn; readers are divided by their number, and read a little of everything, which sums to nothing over
    the copies: without it copies would have the same gradients, and learn to be the same."""
    source = torch.arange(new) % old
    matrix = torch.zeros(new, old)
    matrix[torch.arange(new), source] = 1.0
    if role == "read":
        copies = torch.bincount(source, minlength=old)
        noise = philox.normal(0, f"learned {axis}", (new, old), Box.whole((new, old)), std=NOISE / old**0.5)
        mean = torch.zeros(old, old).index_add_(0, source, noise) / copies[:, None]
        matrix = (matrix + noise - mean[source]) / copies[source, None]
    return matrix.requires_grad_()


def _grown(
    tensor: LogicalTensor, old: Architecture, weights: Mapping[str, torch.Tensor], factors: Factors
) -> torch.Tensor:
    """One new tensor, differentiable in the factors."""
    if tensor.layer is None or ("layers", "weights") not in factors:
        value = weights[tensor.name]
    else:
        stacked = torch.stack([weights[tensor.spec.name.format(layer=i)] for i in range(old.layers)])
        value = torch.tensordot(factors["layers", "weights"][tensor.layer], stacked, dims=1)
    for d, dim in enumerate(tensor.spec.dims):
        axis = dim.axes[0]
        factor = factors.get((axis, _role(dim.role)))
        if _one_each(dim) and (axis, "query") in factors:
            # As the operator has it: of values, or of queries where these have heads of their own.
            factor = over_further(factors.get((axis, "write"), factors[axis, "query"]), old.sizes[axis])
        if factor is None:
            continue
        split = value.unflatten(d, (factor.shape[1], -1)).movedim(d, 0)
        value = torch.tensordot(factor, split, dims=1).movedim(0, d).flatten(d, d + 1)
    return value


def _policy(factors: Factors) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    for (axis, role), factor in factors.items():
        key = "heads" if axis == "kv_heads" else axis
        policy.setdefault(key, {"operator": "dense"})[option(axis, role)] = factor.detach().double().numpy()
    return policy

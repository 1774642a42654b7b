"""LiGO's rule (Wang et al. 2023, section 3.2 and algorithm 1), written out in plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from growth import Architecture

from .rules import Grown, Weights, doubled, grown_from
from .width_rules import sides

Loss = Callable[[Architecture, Weights, int], Tensor]
"""The loss of a model on the batch of a step, differentiable in its weights."""


def ligo(arch: Architecture, old: Weights, loss: Loss, steps: int, lr: float, layers: int) -> Grown:
    """Twice as wide and with so many layers: W' = sum over old layers of w B W A^T, where what reads an axis has the
    map of what writes it, learned by Adam.

    A map for the residual stream, one each for queries, keys and values (with the output projection), and for the MLP's
    gate and its product; weights of the sums for each kind of matrix. It starts at stacked copies, whose shares in
    writers and readers are equal.
    """
    n, d = arch.sizes, arch.sizes["head_dim"]
    new = doubled(arch).replace({"layers": layers})

    def twice(size: int, share: float) -> Tensor:
        return (torch.cat((torch.eye(size), torch.eye(size))) * share).requires_grad_()

    half = 0.5**0.5
    wide = {"hidden": twice(n["hidden"], half), "gate": twice(n["ffn"], 1.0), "up": twice(n["ffn"], half)}
    wide |= {"q": twice(n["heads"] * d, 1.0), "k": twice(n["heads"] * d, 1.0), "v": twice(n["heads"] * d, half)}
    per_layer = [name.replace(".0.", ".{}.", 1) for name in old if ".layers.0." in name]
    start = torch.eye(arch.layers)[torch.arange(layers) % arch.layers]
    deep = {name: start.clone().requires_grad_() for name in per_layer}

    def along(name: str, axis: str) -> Tensor | None:
        if axis == "vocab":
            return None
        if axis == "hidden":
            return wide["hidden"]
        if axis == "ffn":
            return wide["gate" if "gate" in name else "up"]
        return wide[next(key for key in "qkv" if f"{key}_proj" in name or ("o_proj" in name and key == "v"))]

    def widened(name: str, w: Tensor) -> Tensor:
        if w.dim() == 1:
            return wide["hidden"] @ w / half  # a gain: copies of it, as its input has them
        rows, columns = (along(name, side) for side in sides(arch, name))
        w = w if rows is None else rows @ w
        return w if columns is None else w @ columns.T

    def grown() -> dict[str, Tensor]:
        made = {name: widened(name, w) for name, w in old.items() if ".layers." not in name}
        for name in per_layer:
            stack = torch.stack([widened(name, old[name.format(i)]) for i in range(arch.layers)])
            for layer in range(layers):
                made[name.format(layer)] = torch.tensordot(deep[name][layer], stack, dims=1)
        return made

    optimizer = torch.optim.Adam([*wide.values(), *deep.values()], lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(new, grown(), step).backward()
        optimizer.step()
    weights = {name: w.detach() for name, w in grown().items()}
    twins = {axis: [(n[axis] + i, i) for i in range(n[axis])] for axis in ("hidden", "heads", "kv_heads", "ffn")}
    # Of layers that were not there, the old tensor of the same name in the layer that they are copies of.
    before = {name: old[_source(name, arch.layers)] for name in weights}
    return grown_from(new, weights, before, twins)


def _source(name: str, layers: int) -> str:
    parts = name.split(".")
    if "layers" in parts:
        at = parts.index("layers") + 1
        parts[at] = str(int(parts[at]) % layers)
    return ".".join(parts)

"""Published rules that widen a LLaMA-2 by copies, written out in plain torch as their papers have them."""

from collections.abc import Callable

import torch
from torch import Tensor

from growth import Architecture

from .rules import Grown, Weights, doubled, grown_from, outside

Split = Callable[[Tensor, Tensor], Tensor]
"""Of a matrix and the index that each column copies, the columns with what readers take from each copy."""


def sides(arch: Architecture, name: str) -> tuple[str, str]:
    """What the rows and the columns of a matrix are: "vocab", "hidden", "heads" or "ffn"."""
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return "vocab", "hidden"
    if ".mlp." in name:
        return ("hidden", "ffn") if "down" in name else ("ffn", "hidden")
    return ("hidden", "heads") if "o_proj" in name else ("heads", "hidden")


def maps_of(arch: Architecture, draw: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """Which old index each new one copies: the old ones, then further ones. Heads are copied whole."""
    n, d = arch.sizes, arch.sizes["head_dim"]
    heads = torch.cat((torch.arange(n["heads"]), draw(n["heads"])))
    return {
        "vocab": torch.arange(n["vocab"]),
        "hidden": torch.cat((torch.arange(n["hidden"]), draw(n["hidden"]))),
        "heads": (heads[:, None] * d + torch.arange(d)).flatten(),
        "ffn": torch.cat((torch.arange(n["ffn"]), draw(n["ffn"]))),
    }


def copied(arch: Architecture, old: Weights, maps: dict[str, Tensor], split: Split, upper: bool = False) -> Grown:
    """Rows copied along the maps, columns split; with `upper` the copied rows are those of the layer above (of the last
    layer, its own)."""

    def made(name: str, rows: Tensor) -> Tensor:
        w, (_, column) = old[name], sides(arch, name)
        return split(w, maps[column])[rows] if "embed" not in name else w[rows][:, maps[column]]

    new = {}
    for name, w in old.items():
        if w.dim() == 1:
            new[name] = w[maps["hidden"]]
            continue
        rows = maps[sides(arch, name)[0]]
        new[name] = made(name, rows)
        if upper and ".layers." in name:
            layer = int(name.split(".")[2])
            above = name.replace(f".{layer}.", f".{min(layer + 1, arch.layers - 1)}.", 1)
            new[name][len(w) :] = made(above, rows[len(w) :])
    d = arch.sizes["head_dim"]
    sources = {"hidden": maps["hidden"], "heads": maps["heads"][::d] // d, "ffn": maps["ffn"]}
    pairs = {axis: [*enumerate(source.tolist())][arch.sizes[axis] :] for axis, source in sources.items()}
    return grown_from(doubled(arch), new, old, {**pairs, "kv_heads": pairs["heads"]})


def evenly(w: Tensor, source: Tensor) -> Tensor:
    return w[:, source] / torch.bincount(source)[source]


def _drawn(generator: torch.Generator) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(0, n, (n,), generator=generator)


def fpi(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Copies drawn at random, what reads them divided by their number. Chen et al., 2022 (bert2BERT), section 3.2."""
    return copied(arch, old, maps_of(arch, _drawn(generator)), evenly)


def aki(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """As FPI, but copied rows are those of the layer above. Chen et al., 2022 (bert2BERT), section 3.3."""
    return copied(arch, old, maps_of(arch, _drawn(generator)), evenly, upper=True)


def lemon(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Twice as wide, and what reads two copies takes shares drawn for each weight that sum to one; then twice as deep,
    by layers whose last matrices are zero. Wang et al., 2023 (LEMON), sections 4.1 and 4.3."""

    def unequal(w: Tensor, source: Tensor) -> Tensor:
        share = torch.rand(w.shape, generator=generator)
        return torch.cat((w * share, w * (1 - share)), dim=1)

    wide = copied(arch, old, maps_of(arch, torch.arange), unequal)
    grown = wide.arch.replace({"layers": 2 * arch.layers})
    weights, added = {}, {}
    for name, t in grown.tensors().items():
        source = name if t.layer is None else t.spec.name.format(layer=t.layer // 2)
        fresh = t.layer is not None and t.layer % 2 == 1
        w = wide.weights[source].clone()
        weights[name] = torch.zeros_like(w) if fresh and name.endswith(("o_proj.weight", "down_proj.weight")) else w
        added[name] = torch.full(w.shape, True) if fresh else outside(w, old[source])
    return Grown(grown, weights, added, wide.copies)

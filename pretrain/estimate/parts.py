"""What the parameters of a model are for."""

from math import prod

from growth import Architecture

PARTS = {
    "embedding": ("embed", "wte", "wpe"),
    "norms": ("norm", ".ln", "ln_", "LayerNorm"),
    "head": ("lm_head", "cls.", "pooler"),
    "attention": ("attn", "attention"),
    "MLP": ("mlp", "dense"),
}
"""Parts of a model by what the names of their tensors contain; the first that fits counts."""


def parameters_by_part(arch: Architecture) -> dict[str, int]:
    """Parameters of a model by part, in the order of PARTS."""
    found = dict.fromkeys(PARTS, 0)
    for name, tensor in arch.tensors().items():
        part = next(part for part, keys in PARTS.items() if any(key in name for key in keys))
        found[part] += prod(tensor.shape)
    return found

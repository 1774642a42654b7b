"""Published rules of growth, written out in plain torch as their papers or their code have them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from growth import Architecture

Weights = Mapping[str, Tensor]
NOISE = 10 ** (-10 / 20)  # over the weights, at a signal-to-noise ratio of 10 dB


@dataclass(frozen=True)
class Grown:
    """A grown model; added: bool, of each tensor's shape; copies: axis -> (copied channel, the channel it copies)."""

    arch: Architecture
    weights: Weights
    added: Mapping[str, Tensor]
    copies: Mapping[str, list[tuple[int, int]]]


def doubled(arch: Architecture) -> Architecture:
    axes = ("hidden", "heads", "kv_heads", "ffn")
    return arch.replace({axis: 2 * arch.sizes[axis] for axis in axes})


def _twins(arch: Architecture) -> dict[str, list[tuple[int, int]]]:
    axes = ("hidden", "heads", "kv_heads", "ffn")
    return {axis: [(arch.sizes[axis] + i, i) for i in range(arch.sizes[axis])] for axis in axes}


def outside(new: Tensor, old: Tensor) -> Tensor:
    """bool: what lies outside the corner of the old tensor."""
    mask = torch.ones(new.shape, dtype=torch.bool)
    mask[tuple(slice(0, n) for n in old.shape)] = False
    return mask


def grown_from(
    arch: Architecture, weights: Weights, old: Weights, copies: Mapping[str, list[tuple[int, int]]]
) -> Grown:
    return Grown(arch, weights, {name: outside(w, old[name]) for name, w in weights.items()}, copies)


def hyper_cloning(arch: Architecture, old: Weights, generator: torch.Generator, noise: float = 0.0) -> Grown:
    """Every linear map four times, halved; noise: [W/2 + N, W/2 - N]. Samragh et al., 2024, section 3."""
    new = {}
    for name, w in old.items():
        if w.dim() == 1:
            new[name] = torch.cat((w, w))
        elif name == "model.embed_tokens.weight":
            new[name] = torch.cat((w, w), dim=1)
        else:
            rows = w if name == "lm_head.weight" else torch.cat((w, w))
            half = rows / 2
            n = torch.randn(half.shape, generator=generator) * half.std() * noise
            new[name] = torch.cat((half + n, half - n), dim=1)
    return grown_from(doubled(arch), new, old, _twins(arch))


def noisy_cloning(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """With noise at 10 dB."""
    return hyper_cloning(arch, old, generator, NOISE)


def block_diagonal(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Two copies of the model beside each other whose logits are averaged."""
    new = {}
    for name, w in old.items():
        if w.dim() == 1:
            new[name] = torch.cat((w, w))
        elif name == "model.embed_tokens.weight":
            new[name] = torch.cat((w, w), dim=1)
        elif name == "lm_head.weight":
            new[name] = torch.cat((w, w), dim=1) / 2
        else:
            new[name] = torch.block_diag(w, w)
    return grown_from(doubled(arch), new, old, _twins(arch))


def zero_padded(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Twice the hidden channels, all new weights zero and new gains one; epsilon and old gains stay."""
    grown = arch.replace({"hidden": 2 * arch.sizes["hidden"]}, {"norm_eps": arch.scalars["norm_eps"]})
    new = {}
    for name, t in grown.tensors().items():
        new[name] = torch.ones(t.shape) if old[name].dim() == 1 else torch.zeros(t.shape)
        new[name][tuple(slice(0, n) for n in old[name].shape)] = old[name]
    return grown_from(grown, new, old, {})


def layers(arch: Architecture, old: Weights, source: list[int], new: list[bool], zero: tuple[str, ...] = ()) -> Grown:
    """Layer i is old layer source[i]; of new ones the tensors that end in one of `zero` are zero."""
    grown = arch.replace({"layers": len(source)})
    weights, added = {}, {}
    for name, t in grown.tensors().items():
        layer = t.layer
        w = old[name if layer is None else t.spec.name.format(layer=source[layer])].clone()
        fresh = layer is not None and new[layer]
        weights[name] = torch.zeros_like(w) if fresh and name.endswith(zero) and zero else w
        added[name] = torch.full(w.shape, fresh, dtype=torch.bool)
    return Grown(grown, weights, added, {})


def llama_pro(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """After each layer its copy with o_proj and down_proj zero. Wu et al., 2024, section 3.2."""
    n = arch.layers
    zero = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    return layers(arch, old, [i // 2 for i in range(2 * n)], [i % 2 == 1 for i in range(2 * n)], zero)


def g_stack(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """The whole stack on top of itself. Du et al., 2024."""
    n = arch.layers
    return layers(arch, old, [i % n for i in range(2 * n)], [i >= n for i in range(2 * n)])


def middle_block(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Of two blocks the one at ceil(2 / 2), the lower, once more after itself. Saunshi et al., 2024 (MIDAS), section
    3."""
    half = arch.layers // 2
    source = [*range(half), *range(half), *range(half, 2 * half)]
    return layers(arch, old, source, [half <= i < 2 * half for i in range(3 * half)])


def top_layers(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """Copies of the two top layers on top. Yang et al., 2020 (MSLT), section 3."""
    n = arch.layers
    return layers(arch, old, [*range(n), n - 2, n - 1], [i >= n for i in range(n + 2)])


def bert_clones(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
    """After each layer a clone of it."""
    n = arch.layers
    return layers(arch, old, [i // 2 for i in range(2 * n)], [i % 2 == 1 for i in range(2 * n)])


def zero_neurons(*zero: str) -> Callable[[Architecture, Weights, torch.Generator], Grown]:
    """Twice the neurons of a SwiGLU, with random new weights but for those named: "gate", "up", "down"."""

    def rule(arch: Architecture, old: Weights, generator: torch.Generator) -> Grown:
        grown = arch.replace({"ffn": 2 * arch.sizes["ffn"]})
        new = {}
        for name, w in old.items():
            part = next((p for p in ("gate", "up", "down") if f"mlp.{p}_proj" in name), None)
            if part is None:
                new[name] = w
                continue
            fresh = torch.randn(w.shape, generator=generator) * w.std() * (0.0 if part in zero else 1.0)
            new[name] = torch.cat((w, fresh), dim=1 if part == "down" else 0)
        return grown_from(grown, new, old, {})

    return rule

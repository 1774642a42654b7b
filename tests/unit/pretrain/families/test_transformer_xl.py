"""Transformer-XL's reference model against the paper's formulas, written out in loops; its growth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from growth import Architecture, Box, between
from growth.certificate import relative_error
from pretrain.families import reference
from tests.unit.growth.models import STD, reader, tokens, trained

ARCH = Architecture(
    "transformer_xl",
    {"vocab": 23, "hidden": 12, "layers": 2, "heads": 2, "head_dim": 3, "ffn": 16, "sinusoid": 8},
    {"norm_eps": 1e-3},
)


def _norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + ARCH.scalars["norm_eps"]).sqrt() * gain + shift


def _r(distance: int, channels: int) -> Tensor:
    angles = [distance / 10_000 ** (2 * c / channels) for c in range(channels // 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def logits_in_loops(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The logits [S, V] of one text [S]: for each head, query and key a score by the paper's equation."""
    heads, size = ARCH.sizes["heads"], ARCH.sizes["head_dim"]
    x = w["transformer.word_emb.weight"][ids]
    for n in range(ARCH.layers):
        of = f"transformer.layers.{n}."
        h = _norm(x, w[of + "dec_attn.layer_norm.weight"], w[of + "dec_attn.layer_norm.bias"])
        q, k, v = (h @ w[f"{of}dec_attn.{p}_net.weight"].T for p in "qkv")
        mixed = torch.zeros(len(ids), heads * size, dtype=torch.float64)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            u, v_ = w[of + "dec_attn.r_w_bias"][own], w[of + "dec_attn.r_r_bias"][own]
            w_r = w[of + "dec_attn.r_net.weight"][own]
            for i in range(len(ids)):
                scores = [
                    ((q[i, own] + u) @ k[j, own] + (q[i, own] + v_) @ (w_r @ _r(i - j, w_r.shape[1]))) / size**0.5
                    for j in range(i + 1)
                ]
                mixed[i, own] = torch.stack(scores).softmax(0) @ v[: i + 1, own]
        x = x + mixed @ w[of + "dec_attn.o_net.weight"].T
        h = _norm(x, w[of + "pos_ff.layer_norm.weight"], w[of + "pos_ff.layer_norm.bias"])
        inner = (h @ w[of + "pos_ff.fc1.weight"].T + w[of + "pos_ff.fc1.bias"]).clamp(min=0)
        x = x + inner @ w[of + "pos_ff.fc2.weight"].T + w[of + "pos_ff.fc2.bias"]
    return _norm(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"]) @ w["transformer.word_emb.weight"].T


def test_relative_positions_are_a_double_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(t.shape, dtype=torch.float64, generator=draw) * 0.4 for name, t in ARCH.tensors().items()
    }
    ids = torch.randint(0, 23, (2, 11), generator=draw)

    def read(kind: str, name: str, box: Box) -> Tensor:
        return weights[name][box.slices()]

    found = reference.logits(read, ARCH, ids, torch.float64)
    for one, logits in zip(ids, found, strict=True):
        assert torch.allclose(logits, logits_in_loops(weights, one), rtol=0, atol=1e-12)


def test_growth_on_all_axes_is_exact() -> None:
    """At once, with the sinusoid as wide as it was: wider by zero or by copies, with wider heads and more of them."""
    read, ids = trained(ARCH), tokens(23)
    before = reference.logits(read, ARCH, ids, torch.float64)
    for hidden, policy in ((19, {}), (24, {"hidden": {"operator": "replicate", "snr_db": None}})):
        new = ARCH.replace({"hidden": hidden, "layers": 4, "heads": 4, "head_dim": 5, "ffn": 21, "vocab": 31})
        pieces = [[i % 23] for i in range(8)]
        plan = between(ARCH, new, policy, seed=0, init_std=STD, pieces=pieces)
        assert plan.preserves
        after = reference.logits(reader(plan, read), plan.new, ids, torch.float64)[..., :23]
        assert relative_error(after, before) < 1e-12

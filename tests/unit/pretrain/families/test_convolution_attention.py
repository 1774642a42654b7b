"""Convolution Attention in one process: the reference model against torch's own layers, no leak, padding, growth."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growth
from growth import Architecture, Box, GrowthError
from growth.family import family
from pretrain import families
from pretrain.config.levels import kinds
from pretrain.data.documents import STARTS
from pretrain.data.samples import Samples, causal
from pretrain.families.convolution_attention.padding import prompt, starts
from pretrain.families.parameters import parameters
from pretrain.layout import Layout
from pretrain.layout.work import totals
from pretrain.verify.audit import moments_follow

SIZES = {"vocab": 40, "positions": 192, "hidden": 6, "heads": 2, "head_dim": 3, "ffn": 8}
UNIT = 64


def architecture(levels: tuple[int, ...] = (1, 2, 2, 2, 2, 2, 1), **sizes: int) -> Architecture:
    table = family("convolution_attention")
    of = kinds(table, levels)
    return Architecture(table.name, {**SIZES, **sizes, **table.fixed, "layers": len(of)}, kinds=of)


def drawn(arch: Architecture) -> dict[str, Tensor]:
    """Values of all tensors in double precision, large enough for every path to matter."""
    plan = growth.initial(arch, 3, 0.3)

    def nothing(kind: str, name: str, box: Box) -> Tensor:
        raise LookupError(name)

    return {name: plan.evaluate(name, Box.whole(t.shape), nothing).double() for name, t in arch.tensors().items()}


def reading(tensors: dict[str, Tensor]) -> Any:
    return lambda kind, name, box: tensors[name][box.slices()]


def logits(arch: Architecture, tensors: dict[str, Tensor], samples: Samples) -> Tensor:
    return families.of(arch.family).reference(reading(tensors), arch, samples, torch.float64)["words"]


def ids(n: int, length: int) -> Tensor:
    return torch.randint(SIZES["vocab"], (n, length), generator=torch.Generator().manual_seed(5))


class Oracle(nn.Module):
    """The same model of torch's own layers: its convolutions, its attention."""

    def __init__(self, arch: Architecture, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.arch, self.tensors = arch, tensors

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.arch.scalars["norm_eps"])

    def forward(self, inputs: Tensor, places: Tensor, text: Tensor) -> Tensor:
        t = self.tensors
        x = t["embedding.weight"][inputs] + t["positions.weight"][places]
        x = x * text[..., None]
        for kind, number in self.arch.blocks:
            of = f"layers.{number}."
            if kind.startswith("compress"):
                w = t[of + "compress.weight"]
                layer = nn.Conv1d(w.shape[1] // 4, w.shape[0], 4, stride=4, bias=False).double()
                layer.weight.data = w.unflatten(1, (-1, 4))
                x = layer(x.transpose(1, 2)).transpose(1, 2)
            elif kind.startswith("expand"):
                w = t[of + "expand.weight"]
                up = nn.ConvTranspose1d(w.shape[1], w.shape[0] // 4, 4, stride=4, bias=False).double()
                up.weight.data = w.T.unflatten(1, (-1, 4))
                x = up(x.transpose(1, 2)).transpose(1, 2)
            else:
                h = self.norm(x, of + "attention_norm")
                q, k, v = (
                    (h @ t[f"{of}attention.{p}.weight"].T).unflatten(-1, (2, -1)).transpose(1, 2)
                    for p in ("query", "key", "value")
                )
                real = text.unflatten(1, (x.shape[1], -1)).any(-1)  # a unit is text where any of its tokens is
                causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
                seen = causal & (real[:, None, :] == real[:, :, None])
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
                x = x + out.transpose(1, 2).flatten(2) @ t[of + "attention.out.weight"].T
                h = self.norm(x, of + "mlp_norm")
                x = x + F.gelu(h @ t[of + "mlp.up.weight"].T, approximate="tanh") @ t[of + "mlp.down.weight"].T
        return self.norm(x, "norm") @ t["head.weight"].T


@pytest.mark.parametrize("padding", [(0, 0), (0, 63), (17, 40)])
def test_the_reference_is_what_torch_computes(padding: tuple[int, int]) -> None:
    arch = architecture()
    tensors, inputs = drawn(arch), ids(2, 128)
    missing = torch.tensor(padding)[:, None]
    place = torch.arange(128)
    text = place >= missing
    places = torch.where(text, place - missing, place)
    expected = Oracle(arch, tensors)(inputs, places, text)
    given: dict[str, Tensor] = {"inputs": inputs}
    if any(padding):
        given[STARTS] = starts(missing[:, 0])
    torch.testing.assert_close(logits(arch, tensors, given), expected, rtol=1e-12, atol=1e-12)


def test_nothing_leaks() -> None:
    """Token p + 64 changes no bit of the logits up to p: it is in a later unit. Tokens of its own unit do."""
    arch = architecture()
    tensors, inputs = drawn(arch), ids(1, 192)
    before = logits(arch, tensors, {"inputs": inputs})
    for p in (0, 1, 62, 63, 64, 100, 127):
        changed = inputs.clone()
        changed[0, p + UNIT] = (changed[0, p + UNIT] + 1) % SIZES["vocab"]
        after = logits(arch, tensors, {"inputs": changed})
        assert torch.equal(after[:, : p + 1], before[:, : p + 1])
        first = (p + UNIT) // UNIT * UNIT  # the first place that sees it
        assert (after[0, first:] != before[0, first:]).any(-1).all()


def test_padding_changes_nothing() -> None:
    """What stands in the padding is nowhere seen; and a prompt of any length is padded to whole units."""
    arch = architecture()
    tensors = drawn(arch)
    for length in (1, 63, 64, 65):
        sample = dict(prompt(ids(1, length)[0].tolist(), arch))
        assert sample["inputs"].shape == (1, -(-length // UNIT) * UNIT)
        before = logits(arch, tensors, sample)
        sample["inputs"] = torch.where(torch.arange(sample["inputs"].shape[1]) < -length % UNIT, 7, sample["inputs"])
        assert torch.equal(logits(arch, tensors, sample), before)


def test_blocks_must_fit() -> None:
    table = family("convolution_attention")
    for wrong in (("compress_1",), ("layer_1",), ("compress_1", "layer", "expand_1"), ("compress_1", "expand_2")):
        with pytest.raises(GrowthError, match=r"takes a stream|one unit for"):
            Architecture(table.name, {**SIZES, **table.fixed, "layers": len(wrong)}, kinds=wrong)
    with pytest.raises(GrowthError, match="positions = 100 must be a multiple of 64"):
        architecture(positions=100)
    assert architecture((1, 1, 1)).unit == 4
    assert architecture((0, 0, 1, 0, 0)).unit == 16


GROWTH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hidden": ({"hidden": 10}, {}),
    "hidden, scale": ({"hidden": 10}, {"hidden": {"operator": "zero", "keep_eps": True}}),
    "hidden, copies": ({"hidden": 12}, {"hidden": {"operator": "replicate", "snr_db": None}}),
    "hidden, noise": ({"hidden": 12}, {"hidden": "replicate"}),
    "heads": ({"heads": 3}, {}),
    "heads, copies": ({"heads": 4}, {"heads": {"operator": "replicate", "snr_db": None}}),
    "head_dim": ({"head_dim": 5}, {}),
    "ffn": ({"ffn": 12}, {}),
    "ffn, copies": ({"ffn": 16}, {"ffn": {"operator": "replicate", "snr_db": None}}),
    "vocab": ({"vocab": 47}, {"vocab": "random"}),
    "positions": ({"positions": 256}, {}),
    "blocks": ({"levels": (2, 3, 2, 4, 2, 3, 1)}, {}),
    "all": ({"levels": (2, 2, 3, 2, 2, 2, 2), "hidden": 10, "heads": 4, "ffn": 10, "vocab": 44}, {"vocab": "random"}),
}


@pytest.mark.parametrize("name", GROWTH)
def test_growth_keeps_the_function(name: str) -> None:
    """In double precision, with padding; moments follow the gradients, but under noise; and tensor-parallel ranks
    make their parts of the same model, bit for bit."""
    sizes, policy = GROWTH[name]
    old, levels = architecture((1, 2, 2, 2, 2, 2, 1)), sizes.get("levels", (1, 2, 2, 2, 2, 2, 1))
    new = architecture(levels, **{axis: size for axis, size in sizes.items() if axis != "levels"})
    plan = growth.between(old, new, policy, seed=7, init_std=0.3)
    assert plan.preserves
    tensors = drawn(old)
    read = reading(tensors)
    evaluate = partial(plan.evaluate, read=read, dtype=torch.float64)
    grown = {n: evaluate(n, Box.whole(t.shape)) for n, t in plan.new.tensors().items()}
    samples = {**causal(ids(2, 128 + UNIT), UNIT), STARTS: starts(torch.tensor([0, 21]))}
    before, after = logits(old, tensors, samples), logits(plan.new, grown, samples)[..., : SIZES["vocab"]]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    if not plan.approximate:
        errors = moments_follow(plan, read, plan.new, reading(grown), samples)
        assert max(errors.values()) < 1e-6, errors
    layout = Layout.make(totals(plan.new, 128), tp=2)
    if all(plan.new.sizes[axis] % 2 == 0 for axis in ("heads", "ffn")):
        for rank in range(2):
            for piece in (piece for p in parameters(plan.new, layout, 0, rank) for piece in p.pieces):
                assert torch.equal(evaluate(piece.tensor, piece.box), grown[piece.tensor][piece.box.slices()])

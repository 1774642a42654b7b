"""Sublayers in another order against models that are written from the definitions, in plain torch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import growth
from growth import Box
from pretrain import families
from pretrain.config import Model

SIZES: dict[str, Any] = {"vocab": 29, "hidden": 12, "heads": 2, "ffn": 20}
IDS = torch.randint(0, 29, (2, 9), generator=torch.Generator().manual_seed(1))
TYPES = (torch.arange(9) > 4).long().expand(2, 9)
VALID = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
ORDERS: list[tuple[Any, int, list[str]]] = [
    ({"sandwich": 2}, 3, ["s"] * 2 + ["s", "f"] * (3 - 2) + ["f"] * 2),
    ({"par": 4}, 4, ["s" if i in (0, 2) else "f" for i in range(8)]),  # two of eight, spread over the lower five
    ("ffssf", 0, list("ffssf")),
]


def at(w: dict[str, Tensor], prefix: str, x: Tensor, name: str) -> Tensor:
    return F.linear(x, w[f"{prefix}{name}.weight"], w.get(f"{prefix}{name}.bias"))


def norm(w: dict[str, Tensor], eps: float, x: Tensor, name: str) -> Tensor:
    return F.layer_norm(x, (12,), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attended(q: Tensor, k: Tensor, v: Tensor, turn: Callable[[Tensor], Tensor] = lambda x: x, **how: Any) -> Tensor:
    q, k, v = (x.unflatten(-1, (2, 6)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(turn(q), turn(k), v, **how).transpose(1, 2).flatten(2)


def rotated(x: Tensor) -> Tensor:
    """Channels c and c + 3 of a head turned together, as a complex number, by 10,000^(-c / 3) radians a position."""
    angle = torch.arange(9, dtype=torch.float64)[:, None] * 1e4 ** (-torch.arange(3, dtype=torch.float64) / 3)
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def llama2(w: dict[str, Tensor], order: list[str]) -> Tensor:
    x = w["model.embed_tokens.weight"][IDS]
    for i, letter in enumerate(order):
        to = partial(at, w, f"model.layers.{i}.")
        gain = "input_layernorm" if letter == "s" else "post_attention_layernorm"
        h = F.rms_norm(x, (12,), w[f"model.layers.{i}.{gain}.weight"], 1e-5)
        if letter == "s":
            q, k, v = (to(h, f"self_attn.{p}_proj") for p in "qkv")
            x = x + to(attended(q, k, v, rotated, is_causal=True), "self_attn.o_proj")
        else:
            x = x + to(F.silu(to(h, "mlp.gate_proj")) * to(h, "mlp.up_proj"), "mlp.down_proj")
    return F.rms_norm(x, (12,), w["model.norm.weight"], 1e-5) @ w["lm_head.weight"].T


def gpt2(w: dict[str, Tensor], order: list[str]) -> Tensor:
    x = w["transformer.wte.weight"][IDS] + w["transformer.wpe.weight"]
    for i, letter in enumerate(order):
        to = partial(at, w, f"transformer.h.{i}.")
        h = norm(w, 1e-5, x, f"transformer.h.{i}.ln_{1 if letter == 's' else 2}")
        if letter == "s":
            q, k, v = (to(h, f"attn.{p}_proj") for p in "qkv")
            x = x + to(attended(q, k, v, is_causal=True), "attn.c_proj")
        else:
            x = x + to(F.gelu(to(h, "mlp.c_fc"), approximate="tanh"), "mlp.c_proj")
    return norm(w, 1e-5, x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def bert(w: dict[str, Tensor], order: list[str]) -> Tensor:
    table = "bert.embeddings.{}_embeddings.weight".format
    x = w[table("word")][IDS] + w[table("position")] + w[table("token_type")][TYPES]
    for i, letter in enumerate(order):
        to = partial(at, w, f"bert.encoder.layer.{i}.")
        h = norm(w, 1e-12, x, f"bert.encoder.layer.{i}.{'attention.ln' if letter == 's' else 'ln'}")
        if letter == "s":
            q, k, v = (to(h, f"attention.self.{p}") for p in ("query", "key", "value"))
            x = x + to(attended(q, k, v, attn_mask=VALID[:, None, None]), "attention.output.dense")
        else:
            x = x + to(F.gelu(to(h, "intermediate.dense")), "output.dense")
    h = F.gelu(at(w, "cls.predictions.transform.", norm(w, 1e-12, x, "bert.encoder.ln"), "dense"))
    h = norm(w, 1e-12, h, "cls.predictions.transform.LayerNorm")
    return h @ w[table("word")].T + w["cls.predictions.bias"]


@pytest.mark.parametrize("model", [llama2, gpt2, bert], ids=lambda model: model.__name__)
@pytest.mark.parametrize(("order", "layers", "expected"), ORDERS, ids=str)
def test_the_reference_model_is_what_the_definition_says(
    model: Callable[[dict[str, Tensor], list[str]], Tensor], order: Any, layers: int, expected: list[str]
) -> None:
    name = model.__name__
    made = Model(**SIZES, family=name, positions=0 if name == "llama2" else 9, order=order, layers=layers)
    arch = made.architecture()
    assert arch.depth == len(expected)
    plan, draw = growth.initial(arch, 7, 0.3), torch.Generator().manual_seed(2)
    drawn = {n: plan.evaluate(n, Box.whole(t.shape), lambda *_: torch.empty(0)) for n, t in arch.tensors().items()}
    w = {n: x.double() + 0.1 * torch.randn(x.shape, generator=draw, dtype=torch.float64) for n, x in drawn.items()}
    samples = {"inputs": IDS, **({"types": TYPES, "valid": VALID.float()} if name == "bert" else {})}
    out = families.of(name).reference(lambda _, n, box: w[n][box.slices()], arch, samples, torch.float64)["words"]
    torch.testing.assert_close(out, model(w, expected), rtol=0, atol=1e-10)

"""Planted faults: ways of growing wrongly that a certificate must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from growth import Architecture, Box, between
from growth.certificate import relative_error
from growth.evaluate.box_values import Read
from pretrain.families.reference import logits
from tests.unit.growth.models import STD, tokens, trained

OLD = Architecture("llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 8})
NEW = OLD.replace({"hidden": 9, "heads": 6, "kv_heads": 3, "ffn": 11, "head_dim": 8})
PLAN = between(OLD, NEW, {}, seed=0, init_std=STD)
READ = trained(OLD, dtype=torch.float32)
Stored = dict[tuple[str, str], torch.Tensor]


def stored(read: Read = READ) -> Stored:
    kinds = ("weight",)
    return {
        (kind, name): PLAN.evaluate(name, Box.whole(t.shape), read, kind).clone()
        for name, t in PLAN.new.tensors().items()
        for kind in kinds
    }


def reading(model: Stored) -> Read:
    return lambda kind, name, box: model[kind, name][box.slices()]


def shift_groups(model: Stored) -> None:
    key = ("weight", "model.layers.1.self_attn.k_proj.weight")
    model[key] = model[key].roll(8, 0)


def swap_gate_and_up(model: Stored) -> None:
    gate, up = (("weight", f"model.layers.0.mlp.{p}_proj.weight") for p in ("gate", "up"))
    model[gate], model[up] = model[up], model[gate]


def pad_the_tail(model: Stored) -> None:
    for layer in range(2):
        for p in ("q_proj", "k_proj"):
            name = f"model.layers.{layer}.self_attn.{p}.weight"
            heads = model["weight", name].unflatten(0, (-1, 8)).clone()
            source = [0, 2, 4, 6]  # where the old slots are: pairs 0 and 2 of four, and their partners
            moved = torch.zeros_like(heads)
            moved[:, :4] = heads[:, source]
            model["weight", name] = moved.flatten(0, 1)


@pytest.mark.parametrize("fault", [shift_groups, swap_gate_and_up, pad_the_tail, None])
def test_wrong_functions_are_found(fault: Callable[[Any], None] | None) -> None:
    """Without a fault in the weights the fault is the epsilon, which is not one of them."""
    model = stored()
    ids = tokens(9)
    expected = logits(READ, OLD, ids)
    assert relative_error(logits(reading(model), PLAN.new, ids), expected) < 1e-5
    arch = PLAN.new
    if fault:
        fault(model)
    else:
        arch = PLAN.new.replace(scalars={"norm_eps": 1e-2})
    assert relative_error(logits(reading(model), arch, ids), expected) > 1e-4

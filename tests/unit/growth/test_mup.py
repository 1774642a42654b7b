"""muP: the table of Yang et al., and that growth by copies and the factors of the rate are one piece of algebra."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from growth import Architecture, Box, Plan, between, initial
from growth.adapters import Adapters
from growth.mup import Factors, Mup
from pretrain import families
from pretrain.families.parameters import parameters
from pretrain.layout import Layout
from tests.unit.growth.models import whole
from tests.unit.growth.test_moments import CASES, assert_follows

CASES = {**CASES, "qwen3_tied": CASES["llama2"]}  # norms inside of heads, and a tied head
COPY = {"operator": "replicate", "snr_db": None}
POLICY = dict.fromkeys(("hidden", "heads", "ffn"), COPY)


def factors(mup: Mup, arch: Architecture) -> dict[str, Factors]:
    return {name: mup.factors(arch, tensor.spec) for name, tensor in arch.tensors().items()}


def ones(kind: str, name: str, box: Box) -> torch.Tensor:
    return torch.ones(box.shape, dtype=torch.float64)


def copied(family: str, axes: tuple[str, ...]) -> Plan:
    sizes, wider = CASES[family]
    old = Architecture(family, sizes)
    return between(old, old.replace({axis: wider[axis] for axis in axes}), POLICY, seed=0, init_std=0.1)


AXES = ("hidden", "heads", "ffn")
"""Of which each may be copied alone; key-value heads go with the heads."""


@pytest.mark.parametrize("axes", [AXES, *((axis,) for axis in AXES)])
@pytest.mark.parametrize("family", CASES)
def test_factors_grow_as_copies_do(family: str, axes: tuple[str, ...]) -> None:
    """What copying multiplies a tensor and its gradient by, muP multiplies the rate and epsilon by, in each family and
    along each axis: the condition under which Adam's trajectory is that of the small model."""
    also = ("kv_heads",) if "heads" in axes and "kv_heads" in CASES[family][0] else ()
    plan = copied(family, axes + also)
    assert plan.old is not None
    sizes = plan.old.sizes
    mup = Mup(3, heads=sizes["heads"], ffn=sizes["ffn"])
    before, after = factors(mup, plan.old), factors(mup, plan.new)
    for name, tensor in plan.new.tensors().items():
        rate, eps = (after[name].rate / before[name].rate, after[name].eps / before[name].eps)
        for kind, expected in (("weight", rate), ("exp_avg", eps)):
            got = whole(plan, name, ones, kind)
            torch.testing.assert_close(got, torch.full(tensor.shape, expected, dtype=torch.float64), msg=name)


@pytest.mark.parametrize("family", CASES)
def test_growth_by_copies_keeps_the_trajectory(family: str) -> None:
    """50 steps of AdamW after growth are the growth of 50 steps, each model with its own factors of one base model,
    narrower than both; without them they are not."""
    sizes, wider = CASES[family]
    plan = copied(family, tuple(wider))
    assert plan.old is not None
    mup = Mup(3, heads=sizes["heads"], ffn=sizes["ffn"])
    small, large = factors(mup, plan.old), factors(mup, plan.new)

    def of(each: dict[str, Factors], what: str) -> dict[str, float]:
        return {name: getattr(f, what) for name, f in each.items()}

    how = (of(small, "rate"), of(small, "eps")), (of(large, "rate"), of(large, "eps"))
    assert_follows(plan, *how)
    fixed = {name: f.rate for name, f in zip(large, small.values(), strict=True)}
    with pytest.raises(AssertionError):
        assert_follows(plan, how[0], (fixed, of(large, "eps")))


def test_the_table() -> None:
    """Yang et al., 2022, table 3 (Adam), and CompleteP's columns: at four times the width, and twice the depth."""
    sizes = {"vocab": 50, "hidden": 64, "layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 8, "ffn": 96}
    arch = Architecture("llama2", sizes)
    by = {row.name.split(".")[-2]: Mup(16).factors(arch, row) for row in arch.rows}
    assert by["embed_tokens"] == Factors(1, 1, 1 / 4)
    assert by["lm_head"] == Factors(1 / 4, 1 / 4, 1)
    assert by["norm"] == by["input_layernorm"] == Factors(1, 1, 1 / 4)
    assert by["q_proj"] == by["gate_proj"] == by["o_proj"] == by["down_proj"] == Factors(1 / 2, 1 / 4, 1 / 4)
    assert by["down_proj"].decay == 4
    deep = {row.name.split(".")[-2]: Mup(16, layers=2).factors(arch, row) for row in arch.rows}
    assert (deep["embed_tokens"], deep["lm_head"]) == (by["embed_tokens"], by["lm_head"])
    assert deep["q_proj"] == Factors(1 / 2, 1 / 4, 1 / 8)
    assert deep["input_layernorm"] == Factors(1, 1, 1 / 8)
    assert deep["o_proj"] == deep["down_proj"] == Factors(math.sqrt(1 / 8), 1 / 8, 1 / 4)


def test_a_tied_head_is_in_the_last_norm() -> None:
    """The embedding learns as an embedding; the gain and the bias of the norm before the head as a head would."""
    arch = Architecture("gpt2", {**CASES["gpt2"][0], "hidden": 12})
    by = factors(Mup(3), arch)
    assert by["transformer.wte.weight"] == Factors(1, 1, 1 / 4)
    assert by["transformer.ln_f.weight"] == by["transformer.ln_f.bias"] == Factors(1 / 4, 1 / 4, 1)
    plan = initial(arch, 0, 0.1, Mup(3))
    assert (whole(plan, "transformer.ln_f.weight", ones) == 1 / 4).all()
    assert (whole(plan, "transformer.h.0.ln_1.weight", ones) == 1).all()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_what_is_fused_learns_at_one_rate(family: str) -> None:
    """A parameter of Megatron-core's is made of logical tensors with the same factors; those of adapters too."""
    sizes = {"vocab": 64, "hidden": 32, "layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 4, "ffn": 96}
    sizes |= {"positions": 8, "types": 2, "labels": 2, "sinusoid": 8, **families.of(family).table.fixed}
    arch = Architecture(family, {axis: sizes[axis] for axis in ("layers", *families.of(family).table.axes)})
    arch, mup = arch.with_adapters(Adapters(2, 4.0, ("attention", "mlp"))), Mup(16, heads=2, ffn=32, layers=2)
    by = factors(mup, arch)
    for parameter in parameters(arch, Layout.make(arch.layers), 0, 0):
        assert len({by[piece.tensor] for piece in parameter.pieces}) == 1, parameter.name


@pytest.mark.parametrize("family", CASES)
def test_at_the_base_nothing_changes(family: str) -> None:
    """Every factor is one, and a fresh model is the usual one bit for bit."""
    arch = Architecture(family, CASES[family][0])
    mup = Mup(6, layers=2)
    assert set(factors(mup, arch).values()) == {Factors()}
    for name in arch.tensors():
        assert torch.equal(whole(initial(arch, 1, 0.1, mup), name, ones), whole(initial(arch, 1, 0.1), name, ones))


def test_what_is_new_is_drawn_with_the_factors_of_the_new_model() -> None:
    old = Architecture("llama2", {**CASES["llama2"][0], "hidden": 32, "ffn": 64})
    new = old.replace({"hidden": 64, "ffn": 256, "layers": 3})
    policy: dict[str, Any] = {"layers": {"operator": "insert", "at": [{"index": 1, "init": "random"}]}}
    plan = between(old, new, policy, seed=0, init_std=0.1, mup=Mup(16, ffn=32))
    plan = Plan.from_json(plan.to_json())

    def std(name: str, columns: slice = slice(None)) -> float:
        return float(whole(plan, name, ones)[:, columns].std())

    assert std("model.layers.0.mlp.up_proj.weight", slice(32, None)) == pytest.approx(0.1 / 2, rel=0.05)
    assert std("model.layers.1.mlp.down_proj.weight") == pytest.approx(0.1 / math.sqrt(6 * 8), rel=0.05)
    assert std("lm_head.weight", slice(32, None)) == pytest.approx(0.1 / 4, rel=0.1)
    assert "mup" not in between(old, new, policy, seed=0, init_std=0.1).to_json()

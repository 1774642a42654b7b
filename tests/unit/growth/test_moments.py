"""Adam's moments through growth: exact trajectories where copies are pure, and the policies per region."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from growth import Architecture, Box, Generations, GrowthError, Plan, between
from growth.evaluate.box_values import Read
from growth.maps import AxisMap
from growth.step import Step
from pretrain.families.reference import loss
from tests.unit.growth.events import events
from tests.unit.growth.models import SMALL, STD, trained, whole

LR, EPS, DECAY, BETA1, BETA2 = 1e-2, 1e-8, 0.1, 0.9, 0.99
State = dict[str, dict[str, torch.Tensor]]  # kind -> name -> tensor


def state(arch: Architecture, read: Read) -> State:
    return {
        kind: {name: read(kind, name, Box.whole(t.shape)).clone() for name, t in arch.tensors().items()}
        for kind in ("weight", "exp_avg", "exp_avg_sq")
    }


def reading(s: State) -> Read:
    return lambda kind, name, box: s[kind][name][box.slices()]


def train(arch: Architecture, s: State, steps: range, a: dict[str, Any], c: dict[str, Any]) -> None:
    """AdamW in double precision with lr a * LR, eps c * EPS and decay DECAY / a per element."""
    for step in steps:
        ids = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(step))
        leaves = {n: w.clone().requires_grad_() for n, w in s["weight"].items()}
        value = loss(lambda kind, name, box: leaves[name][box.slices()], arch, ids, torch.float64)  # noqa: B023
        for (name, w), g in zip(leaves.items(), torch.autograd.grad(value, list(leaves.values())), strict=True):
            m = s["exp_avg"][name] = BETA1 * s["exp_avg"][name] + (1 - BETA1) * g
            v = s["exp_avg_sq"][name] = BETA2 * s["exp_avg_sq"][name] + (1 - BETA2) * g.square()
            update = m / (1 - BETA1**step) / ((v / (1 - BETA2**step)).sqrt() + c[name] * EPS)
            s["weight"][name] = w.detach() * (1 - LR * DECAY) - a[name] * LR * update


CASES = {
    "llama2": (
        {"vocab": 7, "hidden": 6, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 5},
        {"hidden": 12, "heads": 8, "kv_heads": 4, "ffn": 10},
    ),
    "gpt2": (
        {"vocab": 7, "positions": 8, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 4, "ffn": 5},
        {"hidden": 18, "heads": 4, "ffn": 10},
    ),
    "bert": (
        {"vocab": 7, "positions": 8, "types": 2, "labels": 2}
        | {"hidden": 6, "layers": 2, "heads": 2, "head_dim": 4, "ffn": 5},
        {"hidden": 12, "heads": 4, "ffn": 15},
    ),
    "transformer_xl": (
        {"vocab": 7, "sinusoid": 4, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 4, "ffn": 5},
        {"hidden": 12, "heads": 4, "ffn": 10},
    ),
}


ByName = dict[str, float] | dict[str, torch.Tensor]


def one(arch: Architecture) -> dict[str, float]:
    return dict.fromkeys(arch.tensors(), 1.0)


def assert_same_trajectory(plan: Plan) -> None:
    """50 steps after growth are the growth of 50 steps, under lr * a, eps * c and decay / a per tensor."""
    assert plan.old is not None
    assert plan.approximate == ()

    def ones(kind: str, name: str, box: Box) -> torch.Tensor:
        return torch.ones(box.shape, dtype=torch.float64)

    a = {n: whole(plan, n, ones) for n in plan.new.tensors()}
    c = {n: whole(plan, n, ones, "exp_avg") for n in plan.new.tensors()}
    assert_follows(plan, (one(plan.old), one(plan.old)), (a, c))


def assert_follows(plan: Plan, small: tuple[ByName, ByName], large: tuple[ByName, ByName]) -> None:
    """50 steps after growth are the growth of 50 steps, each model with its own (a, c): see `train`."""
    assert plan.old is not None
    before = state(plan.old, trained(plan.old))
    for kind in ("exp_avg", "exp_avg_sq"):
        before[kind] = {n: torch.zeros_like(w) for n, w in before[kind].items()}
    train(plan.old, before, range(1, 11), *small)

    def grow(s: State) -> State:
        return {kind: {n: whole(plan, n, reading(s), kind) for n in plan.new.tensors()} for kind in s}

    after = grow(before)
    train(plan.old, before, range(11, 61), *small)
    train(plan.new, after, range(11, 61), *large)
    expected = grow(before)
    for name, w in after["weight"].items():
        scale = expected["weight"][name].abs().max()
        assert (w - expected["weight"][name]).abs().max() <= 1e-9 * scale, name


@pytest.mark.parametrize("family", CASES)
def test_copies_keep_the_trajectory(family: str) -> None:
    sizes, wider = CASES[family]
    old = Architecture(family, sizes)
    copy = {"operator": "replicate", "snr_db": None}
    policy = dict.fromkeys(("hidden", "heads", "ffn"), copy)
    assert_same_trajectory(between(old, old.replace(wider), policy, seed=0, init_std=STD))


def test_rescaling_keeps_the_trajectory() -> None:
    """Writers of the residual stream times 1.7, readers times 1.3, queries times 3, up times 0.6: the same function,
    undone by epsilon, gains, the softmax scale and down."""
    s = CASES["llama2"][0]
    old = Architecture("llama2", s, {"norm_eps": 1e-2})
    stream = {"write": 1.7, "gain": 1 / 1.3, "read": 1.3}
    maps = (
        AxisMap.make("hidden", s["hidden"], range(s["hidden"]), stream, gradient={r: 1 / f for r, f in stream.items()}),
        AxisMap.make("head_dim", s["head_dim"], range(s["head_dim"]), {"query": 3.0}),
        AxisMap.make("ffn", s["ffn"], range(s["ffn"]), {"write": 0.6, "read": 1 / 0.6, "gate": 1.0}),
    )
    assert_same_trajectory(rescaled(old, maps, {"norm_eps": 1e-2 * 1.7**2, "softmax_scale": 1 / 6}))


def test_many_columns_of_one_source() -> None:
    """An old axis of one index, copied beside rows that are gathered: nothing is left as the memory was."""
    old = Architecture("gpt2", {**CASES["gpt2"][0], "hidden": 40, "ffn": 1})
    new = old.replace({"hidden": 80, "ffn": 32})
    policy = {
        "hidden": {"operator": "net2net", "mapping": "random", "snr_db": None},
        "ffn": {"operator": "replicate", "snr_db": None},
        "moments": {"old": "copy", "new": "copy"},
    }
    plan = between(old, new, policy, seed=0, init_std=STD)
    name, box = "transformer.h.0.mlp.c_proj.weight", Box((0, 0), (80, 32))
    out = torch.full(box.shape, torch.nan, dtype=torch.float64)
    found = plan.evaluate(name, box, trained(old), "exp_avg", torch.float64, out=out)
    assert torch.equal(found, found[:, :1].expand(box.shape))


def rescaled(old: Architecture, maps: tuple[AxisMap, ...], scalars: dict[str, float]) -> Plan:
    new = old.replace(scalars=scalars)
    step = Step(old, new, ("rescaled",), True, axes={m.axis: m for m in maps})
    return Plan(old, new, (step,), 0, STD)


def gradients(arch: Architecture, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    ids = torch.randint(5, (2, 8), generator=torch.Generator().manual_seed(1))
    value = loss(lambda kind, name, box: leaves[name][box.slices()], arch, ids, torch.float64)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


@given(events())
@settings(max_examples=50)
def test_moments_are_transformed_like_gradients(plan: Plan) -> None:
    """Where a plan does not say approximate, the gradients of the grown model are the grown gradients."""
    assert plan.old is not None
    if plan.approximate or plan.new.sizes["vocab"] > plan.old.sizes["vocab"]:
        return  # new ids change the softmax
    read = trained(plan.old)
    before = gradients(plan.old, {n: read("weight", n, Box.whole(t.shape)) for n, t in plan.old.tensors().items()})
    after = gradients(plan.new, {n: whole(plan, n, read) for n in plan.new.tensors()})
    for name, tensor in plan.new.tensors().items():
        born = plan.new_mask(name, Box.whole(tensor.shape))
        scale = max(float(after[name].abs().max()), 1e-6)  # some have none: a bias of keys, an unused type
        for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            old = {n: g**power for n, g in before.items()}
            grown = whole(plan, name, lambda kind, n, box, old=old: old[n][box.slices()], kind)
            assert (grown[born] == 0).all()
            assert ((grown - after[name] ** power).abs()[~born] <= 1e-8 * scale**power).all(), (name, kind)


def event(moments: object, **policy: object) -> Plan:
    new = SMALL.replace({"hidden": 8, "layers": 4})
    return between(SMALL, new, {"moments": moments, "layers": "stack", **policy}, seed=0, init_std=STD)


def test_policies_of_regions() -> None:
    read = trained(SMALL)
    name, copy = "model.layers.1.input_layernorm.weight", "model.layers.3.input_layernorm.weight"
    old = read("exp_avg", name, Box((0,), (6,)))
    scale = (8 / 6) ** 0.5  # a gain times s has gradients times 1 / s
    for moments, factor, copied in (
        ({}, scale, 0.0),
        ("transform", scale, 0.0),
        ("copy", 1.0, 0.0),
        ("reset", 0.0, 0.0),
        ({"new": "transform"}, scale, scale),
        ({"old": "copy", "new": "copy"}, 1.0, 1.0),
    ):
        plan = event(moments)
        for tensor, f in ((name, factor), (copy, copied)):
            got = whole(plan, tensor, read, "exp_avg")
            assert torch.allclose(got[:6], old * f, rtol=1e-12, atol=0), (moments, tensor)
            assert (got[6:] == 0).all()
            square = whole(plan, tensor, read, "exp_avg_sq")[:6]
            assert torch.allclose(square, read("exp_avg_sq", name, Box((0,), (6,))) * f**2, rtol=1e-12, atol=0)


def test_generations_go_with_the_moments() -> None:
    """Adam's step for bias correction is that of the generation: reset moments start a new one, kept ones do not."""
    first = Generations.first(SMALL)
    assert event({}).generations(first).births["layers"] == ((0, 2), (1, 2))
    assert event({"new": "transform"}).generations(first).births["layers"] == ((0, 4),)
    assert event({"new": "transform"}).generations(first).births["hidden"] == ((0, 6), (1, 2))
    reset = event("reset").generations(first)
    assert reset.births["ffn"] == ((1, 8),)
    assert event("reset").new_mask("model.norm.weight", Box.whole((8,))).tolist() == [False] * 6 + [True] * 2


def test_policies_that_are_none() -> None:
    for moments, message in (
        ("keep", "moments: old is 'keep'"),
        ({"old": "reset", "new": "copy"}, "reset both"),
        ({"young": "copy"}, "or map old and new"),
    ):
        with pytest.raises(GrowthError, match=message):
            event(moments)


def test_approximations_are_named() -> None:
    grown = SMALL.replace({"hidden": 12, "heads": 4})
    plan = between(SMALL, grown, {"hidden": "replicate"}, seed=0, init_std=STD)
    assert [note.split(":")[0] for note in plan.approximate] == ["hidden"]
    split = SMALL.replace({"kv_heads": 2})
    plan = between(SMALL, split, {}, seed=0, init_std=STD)
    assert [note.split(":")[0] for note in plan.approximate] == ["kv_heads"]


@pytest.mark.parametrize("moments", ["reset", {"old": "reset", "new": "reset"}])
def test_a_reset_where_no_axis_changes(moments: Any) -> None:
    """The model stays, its moments begin at zero, and all parts are of a new generation: as where an axis changes."""
    plan = between(SMALL, SMALL, {"moments": moments}, seed=1, init_std=STD)
    plan = Plan.from_json(plan.to_json())
    read = trained(SMALL)
    for name, tensor in SMALL.tensors().items():
        box = Box.whole(tensor.shape)
        assert torch.equal(plan.evaluate(name, box, read, dtype=torch.float64), read("weight", name, box))
        for kind in ("exp_avg", "exp_avg_sq"):
            assert not plan.evaluate(name, box, read, kind).any()
    old = Generations.first(SMALL)
    assert (plan.generations(old).count, plan.preserves, plan.operators) == (2, True, ("moments: reset",))
    assert all(plan.generations(old).present(tensor) == {1} for tensor in SMALL.tensors().values())
    assert not plan.new_mask("lm_head.weight", Box.whole(SMALL.tensor("lm_head.weight").shape)).any()
    assert between(SMALL, SMALL, {"moments": "copy"}, seed=1, init_std=STD).steps == ()


def test_a_reset_has_no_generation_after_the_last() -> None:
    full = Generations({axis: ((255, n),) for axis, n in SMALL.sizes.items()}, 256)
    with pytest.raises(GrowthError, match="at most 256 generations"):
        between(SMALL, SMALL, {"moments": "reset"}, seed=1, init_std=STD).generations(full)

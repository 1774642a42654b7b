"""Layers of several kinds, and layers that several blocks share."""

from __future__ import annotations

import json

import pytest
import torch

from growth import Architecture, Box, Generations, GrowthError, Plan, between, identity, initial
from growth.architecture import in_words
from growth.certificate import relative_error
from growth.describe import describe_plan
from growth.evaluate.box_values import Read
from pretrain.families.reference import logits
from tests.unit.growth.models import SMALL, STD, reader, tokens, trained

BERT = {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 3, "ffn": 8, "positions": 16}
USUAL = (SMALL, Architecture("gpt2", BERT), Architecture("bert", {**BERT, "types": 2, "labels": 2}))
ORDER = ("attention", "mlp", "layer", "mlp")


def mixed(arch: Architecture, *kinds: str, calls: tuple[int, ...] = ()) -> Architecture:
    return arch.replace({"layers": len(kinds)}, kinds=kinds, calls=calls)


def output(plan: Plan, read: Read) -> torch.Tensor:
    return logits(reader(plan, read), plan.new, tokens(9), torch.float64)


def error(plan: Plan, read: Read) -> float:
    assert plan.old is not None
    return relative_error(output(plan, read), output(identity(plan.old), read))


def sources(plan: Plan) -> list[int]:
    assert plan.steps[0].layers is not None
    return plan.steps[0].layers.source[:, 0].tolist()


@pytest.mark.parametrize("usual", USUAL, ids=lambda arch: arch.family)
def test_attention_and_then_an_mlp_are_a_layer(usual: Architecture) -> None:
    """The same weights in one layer, and in two of half of it each."""
    read = trained(usual)
    halves = mixed(usual, "attention", "mlp", "attention", "mlp")
    assert halves.parameters() == usual.parameters()
    assert [t.layer for t in usual.tensors().values() if t.layer is not None] == sorted(
        (t.layer or 0) // 2 for t in halves.tensors().values() if t.layer is not None
    )

    def of_half(kind: str, name: str, box: Box) -> torch.Tensor:
        tensor = halves.tensor(name)
        layer = 0 if tensor.layer is None else tensor.layer // 2
        return read(kind, tensor.spec.name.format(layer=layer), box)

    found = logits(of_half, halves, tokens(9), torch.float64)
    assert torch.equal(found, logits(read, usual, tokens(9), torch.float64))
    assert usual.branches == halves.branches == 4


@pytest.mark.parametrize("usual", USUAL, ids=lambda arch: arch.family)
def test_growth_of_several_kinds(usual: Architecture) -> None:
    """Every axis at once, the function kept; each new layer is made of one of its kind."""
    old = mixed(usual, *ORDER)
    read = trained(old)
    sizes = {"ffn": 11, "hidden": 12} if usual.family != "bert" else {"ffn": 11}
    new = old.replace({"layers": 6, **sizes}, kinds=("attention", "mlp", "mlp", "layer", "mlp", "attention"))
    plan = between(old, new, {"hidden": "replicate"} if "hidden" in sizes else {}, seed=0, init_std=STD)
    assert plan.preserves
    assert error(plan, read) < 1e-12
    assert sources(plan) == [0, 1, 1, 2, 3, 0]
    assert plan.new == new.replace(scalars=plan.new.scalars)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).to_json() == plan.to_json()
    assert "blocks: 1 attention, 1 mlp, 1 layer, 1 mlp to 1 attention, 2 mlp, 1 layer, 1 mlp" in describe_plan(plan)
    grown = plan.generations(initial(old, 0, STD).generations())
    assert grown.along("layers").tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("stack", [0, 1, 0, 1, 2, 3, 2, 3]),
        ("interleave", [0, 1, 0, 1, 2, 3, 2, 3]),
        ("identity", [0, 1, 0, 1, 2, 3, 2, 3]),
    ],
)
def test_operators_work_kind_by_kind(operator: str, expected: list[int]) -> None:
    halves = ("attention", "mlp")
    old = mixed(SMALL, *halves * 2)
    plan = between(old, mixed(SMALL, *halves * 4), {"layers": operator}, seed=0, init_std=STD)
    if operator == "stack":
        expected = [0, 1, 2, 3] * 2
    assert sources(plan) == expected
    assert plan.preserves == (operator == "identity")


def test_layers_are_dropped_kind_by_kind() -> None:
    old = mixed(SMALL, *("attention", "mlp") * 4)
    plan = between(old, mixed(SMALL, "attention", "attention", "mlp"), {"layers": "drop"}, seed=0, init_std=STD)
    assert sources(plan) == [0, 4, 1]
    keep = {"layers": {"operator": "drop", "keep": [0, 1, 7]}}
    with pytest.raises(
        GrowthError, match="new layer 1 is of kind attention and cannot be made of old layer 1, of kind"
    ):
        between(old, mixed(SMALL, "attention", "attention", "mlp"), keep, seed=0, init_std=STD)


def test_another_order_of_the_same_layers_is_another_function() -> None:
    old = mixed(SMALL, "attention", "mlp", "attention", "mlp")
    new = mixed(SMALL, "attention", "attention", "mlp", "mlp")
    plan = between(old, new, {"layers": "stack"}, seed=0, init_std=STD)
    assert sources(plan) == [0, 2, 1, 3]
    assert not plan.preserves
    with pytest.raises(GrowthError, match=r"2 attention, 2 mlp.*name another operator"):
        between(old, new, {}, seed=0, init_std=STD)


def test_layers_of_a_new_kind_are_drawn() -> None:
    read = trained(SMALL)
    new = mixed(SMALL, "layer", "mlp", "layer")
    plan = between(SMALL, new, {"layers": {"operator": "insert", "at": [1], "init": "random"}}, seed=0, init_std=STD)
    assert sources(plan) == [0, -1, 1]
    plan = between(SMALL, new, {}, seed=0, init_std=STD)  # its branch is zero
    assert plan.preserves
    assert error(plan, read) == 0
    with pytest.raises(GrowthError, match="stack needs an old layer to copy"):
        between(SMALL, new, {"layers": "stack"}, seed=0, init_std=STD)
    with pytest.raises(GrowthError, match="2 of a kind cannot become 1"):
        between(SMALL, mixed(SMALL, "layer", "mlp"), {"layers": "stack"}, seed=0, init_std=STD)
    with pytest.raises(GrowthError, match="of kind mlp and cannot be made of old layer 0, of kind layer"):
        between(SMALL, new, {"layers": {"operator": "insert", "at": [1]}}, seed=0, init_std=STD)


def test_aki_reads_the_next_layer_of_the_kind() -> None:
    old = mixed(SMALL, *ORDER)
    plan = between(old, old.replace({"hidden": 8}), {"hidden": "aki"}, seed=0, init_std=STD)
    name = "model.layers.{}.mlp.down_proj.weight"
    assert {n for n, _ in plan.reads(name.format(1), Box((6, 0), (8, 8)))} == {name.format(3)}
    assert {n for n, _ in plan.reads(name.format(2), Box((6, 0), (8, 8)))} == {name.format(2)}


@pytest.mark.parametrize("usual", USUAL, ids=lambda arch: arch.family)
def test_shared_layers_are_untied_bit_for_bit(usual: Architecture) -> None:
    """Three groups of two, of two kinds, to groups of their own; in between, one in two steps."""
    old = mixed(usual, "attention", "layer", "mlp", calls=(0, 0, 1, 1, 2, 2))
    read = trained(old)
    assert old.branches == 2 + 4 + 2
    kinds = ("attention", "attention", "layer", "mlp")
    some = old.replace({"layers": 4}, kinds=kinds, calls=(0, 1, 2, 2, 3, 3))
    each = some.replace({"layers": 6}, kinds=("attention", "attention", "layer", "layer", "mlp", "mlp"), calls=())
    plan = between(old, some, {}, seed=0, init_std=STD)
    assert plan.operators == ("layers: untie",)
    assert sources(plan) == [0, 0, 1, 2]
    joint = plan.then(between(some, each, {}, seed=1, init_std=STD))
    for grown in (plan, joint, between(old, each, {}, seed=0, init_std=STD)):
        assert grown.preserves
        assert torch.equal(output(grown, read), output(identity(old), read))
    assert sources(between(old, each, {}, seed=0, init_std=STD)) == [0, 0, 1, 1, 2, 2]


def test_a_gradient_sums_over_the_calls() -> None:
    """What a shared layer gets is the sum of what its copies get."""
    old = SMALL.replace(calls=(0, 0, 1, 1))
    read = trained(old)
    plan = between(old, old.replace({"layers": 4}, calls=()), {}, seed=0, init_std=STD)

    def gradients(plan: Plan) -> dict[str, torch.Tensor]:
        weights = {
            name: plan.evaluate(name, Box.whole(t.shape), read, dtype=torch.float64).clone().requires_grad_()
            for name, t in plan.new.tensors().items()
        }
        out = logits(lambda kind, name, box: weights[name][box.slices()], plan.new, tokens(9), torch.float64)
        out.square().sum().backward()
        return {name: w.grad for name, w in weights.items() if w.grad is not None}

    shared, own = gradients(identity(old)), gradients(plan)
    name = "model.layers.{}.mlp.down_proj.weight"
    for layer in range(2):
        parts = own[name.format(2 * layer)] + own[name.format(2 * layer + 1)]
        torch.testing.assert_close(shared[name.format(layer)], parts, rtol=1e-12, atol=1e-12)


def test_deeper_with_shared_layers() -> None:
    old = SMALL.replace(calls=(0, 0, 1, 1))
    read = trained(old)
    new = old.replace({"layers": 4}, calls=(0, 1, 0, 2, 3, 2))
    plan = between(old, new, {}, seed=0, init_std=STD)
    assert plan.operators == ("layers: identity",)
    assert plan.preserves
    assert error(plan, read) == 0
    plan = between(old, old.replace({"layers": 4}, calls=(0, 1, 1, 2, 2, 3)), {}, seed=0, init_std=STD)
    assert not plan.preserves  # a layer is called less often than before
    assert plan.steps[0].layers is not None


def test_json_has_only_what_is_unusual() -> None:
    assert set(SMALL.to_json()) == {"family", "sizes", "scalars"}
    for arch in (mixed(SMALL, *ORDER), SMALL.replace(calls=(0, 1, 0)), mixed(SMALL, "mlp", "layer", calls=(0, 1, 0))):
        data = json.loads(json.dumps(arch.to_json()))
        assert Architecture.from_json(data) == arch
        assert hash(Architecture.from_json(data)) == hash(arch)
    assert in_words(SMALL) == ""
    assert in_words(mixed(SMALL, "mlp", "layer", calls=(0, 0, 1))) == "2 mlp, 1 layer; layers 0 x 2, 1"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"kinds": ("layer", "conv")}, "llama2 has no kind of layer conv: its kinds are layer, attention, mlp"),
        ({"kinds": ("layer",)}, "there are 2 layers, and 1 kinds of them"),
        ({"calls": (0, 0)}, "call each of the 2 layers.*they call 0, 0"),
        ({"calls": (1, 0)}, "in the order of their first calls"),
        ({"calls": (0, 2, 1)}, "call each of the 2 layers"),
        ({"calls": (0, 1.0)}, "numbers of layers"),
        ({"calls": (0, 1) * 40_000}, "at most 65,536 numbers"),
    ],
)
def test_blocks_that_are_none(how: dict[str, object], message: str) -> None:
    with pytest.raises(GrowthError, match=message):
        Architecture("llama2", SMALL.sizes, **how)  # type: ignore[arg-type]


def test_how_many_layers_does_not_say_which() -> None:
    with pytest.raises(GrowthError, match="of several kinds"):
        mixed(SMALL, *ORDER).replace({"layers": 5})
    with pytest.raises(GrowthError, match="blocks share them"):
        SMALL.replace(calls=(0, 1, 0)).replace({"layers": 4})
    assert mixed(SMALL, "mlp", "mlp").replace({"layers": 3}).kinds == ("mlp",) * 3


def test_a_first_generation_knows_layers_and_not_blocks() -> None:
    arch = SMALL.replace(calls=(0, 0, 1, 1))
    assert Generations.first(arch).along("layers").tolist() == [0, 0]

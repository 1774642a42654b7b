"""Low-rank adapters: attached, merged at the next event, box by box."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth import Architecture, Box, GrowthError, Plan, between, identity, initial
from growth.adapters import Adapters
from growth.certificate import relative_error
from growth.describe import describe_plan
from growth.evaluate.box_values import Read
from pretrain.families.reference import logits
from tests.unit.growth.models import SMALL, STD, boxes, reader, tokens, trained, whole

GPT2 = Architecture(
    "gpt2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 3, "ffn": 8, "positions": 16}
)
BERT = Architecture("bert", {**GPT2.sizes, "types": 2, "labels": 2})
BOTH = Adapters(2, 3.0, ("attention", "mlp"))
ATTENTION = Adapters(1, 2.0, ("attention",))


def output(read: Read, arch: Architecture) -> torch.Tensor:
    return logits(read, arch, tokens(9), torch.float64)


@pytest.mark.parametrize("usual", [SMALL, GPT2, BERT], ids=lambda arch: arch.family)
def test_adapters_are_attached_and_merged(usual: Architecture) -> None:
    """The function stays in both events; A is drawn, B is zero, and what is merged is W + alpha / rank * B A."""
    read = trained(usual)
    attach = between(usual, usual.with_adapters(BOTH), seed=1, init_std=STD)
    assert attach.operators == ("adapters: attach",)
    assert attach.preserves
    fresh = reader(attach, read)
    assert torch.equal(output(fresh, attach.new), output(read, usual))
    drawn = {name: whole(attach, name, read) for name in attach.new.tensors() if name not in usual.tensors()}
    assert len(drawn) == 2 * 2 * (4 + (3 if usual.family == "llama2" else 2))
    for name, value in drawn.items():
        assert bool(value.any()) == name.endswith("lora_A.weight")
        assert attach.new_mask(name, Box.whole(value.shape)).all()
        assert not whole(attach, name, read, "exp_avg_sq").any()

    old = attach.new
    read = trained(old)
    merge = between(old, usual, seed=1, init_std=STD)
    assert merge.operators == ("adapters: merge",)
    assert merge.new == usual
    assert relative_error(output(reader(merge, read), usual), output(read, old)) < 1e-12
    name = next(name for name in old.tensors() if old.adapter(name))
    a, b = (whole(identity(old), part, read) for part in old.adapter(name) or ())
    old_weight = whole(identity(old), name, read)
    assert (whole(merge, name, read) - (old_weight + 1.5 * b @ a)).abs().max() < 1e-14
    assert torch.equal(whole(merge, name, read, "exp_avg"), whole(identity(old), name, read, "exp_avg"))


def test_growth_between_two_stages_with_adapters() -> None:
    """They are merged, everything grows, new ones are attached: exact, and the new ones are the newest generation."""
    old = SMALL.with_adapters(ATTENTION)
    plan = between(old, SMALL.replace({"layers": 3, "ffn": 12}).with_adapters(BOTH), seed=0, init_std=STD)
    assert plan.operators == ("adapters: merge", "layers: identity", "ffn: zero", "adapters: attach")
    assert len(plan.steps) == 3
    assert plan.preserves
    read = trained(old)
    assert relative_error(output(reader(plan, read), plan.new), output(read, old)) < 1e-10
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).to_json() == plan.to_json()
    assert "old + 2 * lora_B lora_A, of rank 1" in describe_plan(plan)

    first = initial(old, 0, STD).generations()
    grown = plan.generations(first)
    assert grown.along("rank").tolist() == [1, 1]
    assert grown.present(plan.new.tensor("model.layers.0.self_attn.q_proj.lora_A.weight")) == {1}
    assert grown.present(plan.new.tensor("model.layers.0.self_attn.q_proj.weight")) == {0}
    without = between(old, SMALL, seed=0, init_std=STD).generations(first)
    assert without == initial(SMALL, 0, STD).generations()

    again = between(old, old, seed=0, init_std=STD)
    assert again.operators == ("adapters: merge", "adapters: attach")


def test_untied_layers_take_what_was_merged() -> None:
    """Progressive diverging: blocks that shared a layer and its adapter get copies, and adapters of their own."""
    old = SMALL.replace({"layers": 2}, calls=(0, 0, 1, 1)).with_adapters(BOTH)
    new = SMALL.replace({"layers": 4}).with_adapters(BOTH)
    plan = between(old, new, {"layers": "untie"}, seed=0, init_std=STD)
    assert plan.preserves
    read = trained(old)
    assert relative_error(output(reader(plan, read), plan.new), output(read, old)) < 1e-10


@given(st.data())
@settings(max_examples=30)
def test_growing_a_part_is_a_part_of_what_is_grown(data: st.DataObject) -> None:
    """Bit for bit, whatever the box, and it reads no more than it says."""
    old = SMALL.with_adapters(BOTH)
    plan = between(old, SMALL.replace({"hidden": 8, "heads": 4}).with_adapters(ATTENTION), seed=0, init_std=STD)
    stored, names = trained(old, dtype=torch.float32), data.draw(st.sampled_from(sorted(plan.new.tensors())))
    box = data.draw(boxes(plan.new.tensor(names).shape))
    asked: list[tuple[str, Box]] = []

    def read(kind: str, name: str, part: Box) -> torch.Tensor:
        asked.append((name, part))
        return stored(kind, name, part)

    value = plan.evaluate(names, box, read)
    assert torch.equal(value, whole(plan, names, stored, dtype=torch.float32)[box.slices()])
    if value.numel():
        assert set(asked) <= set(plan.reads(names, box))


@pytest.mark.parametrize(
    ("adapters", "problem"),
    [
        (Adapters(0, 1.0, ("mlp",)), "rank 0: the smallest dimension .* is 6, so choose 1 to 6"),
        (Adapters(5, 1.0, ("attention",)), "rank 5: .* is 4, so choose 1 to 4"),
        (Adapters(1, 0.0, ("mlp",)), "alpha = 0.0: it must be a number above 0"),
        (Adapters(1, 1.0, ("head",)), "adapters on head: llama2 can have them on attention, mlp"),
        (Adapters(1, 1.0, ()), "adapters on nothing"),
    ],
)
def test_adapters_that_cannot_be(adapters: Adapters, problem: str) -> None:
    with pytest.raises(GrowthError, match=problem):
        SMALL.with_adapters(adapters)

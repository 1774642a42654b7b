from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growth import Architecture, Box, Generations, GrowthError, between, identity, initial
from tests.unit.growth.models import STD, boxes, grown_llama2, llama2

SMALL = Architecture(
    "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
)


@given(llama2(), st.data())
def test_a_box_knows_its_generations(old: Architecture, data: st.DataObject) -> None:
    generations = initial(old, 0, STD).generations()
    arch = old
    for seed in range(3):
        plan = between(arch, data.draw(grown_llama2(arch)), {"vocab": "mean"}, seed=seed, init_std=STD)
        before, generations, arch = generations, plan.generations(generations), plan.new
        assert generations.count in (before.count, before.count + 1)
        for name, tensor in arch.tensors().items():
            whole = generations.of(tensor, Box.whole(tensor.shape))
            assert whole.dtype == torch.uint8
            newest = before.count
            assert torch.equal(whole == newest, plan.new_mask(name, Box.whole(tensor.shape)))
    name = data.draw(st.sampled_from(sorted(arch.tensors())))
    tensor = arch.tensor(name)
    box = data.draw(boxes(tensor.shape))
    assert torch.equal(generations.of(tensor, box), generations.of(tensor, Box.whole(tensor.shape))[box.slices()])
    assert Generations.from_json(json.loads(json.dumps(generations.to_json()))) == generations


def test_births_of_an_event() -> None:
    plan = between(
        SMALL, SMALL.replace({"hidden": 8, "layers": 4, "heads": 4, "kv_heads": 2}), {}, seed=0, init_std=STD
    )
    births = plan.generations(Generations.first(SMALL)).births
    assert births["hidden"] == ((0, 6), (1, 2))
    assert births["layers"] == ((0, 1), (1, 1), (0, 1), (1, 1))
    assert births["kv_heads"] == ((0, 1), (1, 1))
    assert births["ffn"] == ((0, 8),)


def test_a_resume_makes_no_generation() -> None:
    generations = Generations.first(SMALL)
    assert identity(SMALL).generations(generations) == generations
    assert not identity(SMALL).new_mask("model.norm.weight", Box.whole((6,))).any()
    assert initial(SMALL, 0, STD).new_mask("model.norm.weight", Box.whole((6,))).all()


def test_generations_of_another_shape_are_refused() -> None:
    plan = between(SMALL, SMALL.replace({"hidden": 8}), {}, seed=0, init_std=STD)
    with pytest.raises(GrowthError, match="hidden: the plan begins at 6"):
        plan.generations(Generations.first(plan.new))
    with pytest.raises(GrowthError, match="give them"):
        plan.generations()

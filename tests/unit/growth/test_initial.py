from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growth import Architecture, Box, between, initial
from tests.unit.growth.models import SMALL, STD, boxes, llama2, reader, whole


def test_llama2_7b_has_its_parameters() -> None:
    sizes = {"vocab": 32000, "hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "head_dim": 128, "ffn": 11008}
    assert Architecture("llama2", sizes).parameters() == 6_738_415_616


@given(llama2(), st.data())
def test_any_box_of_a_fresh_model(arch: Architecture, data: st.DataObject) -> None:
    plan = initial(arch, 3, 0.02)
    name = data.draw(st.sampled_from(sorted(arch.tensors())))
    shape = arch.tensor(name).shape
    box = data.draw(boxes(shape))
    whole = plan.evaluate(name, Box.whole(shape), pytest.fail)
    assert torch.equal(plan.evaluate(name, box, pytest.fail), whole[box.slices()])
    assert not plan.evaluate(name, box, pytest.fail, "exp_avg_sq").any()
    assert list(plan.reads(name, box)) == []


def test_standard_deviations() -> None:
    arch = Architecture(
        "llama2", {"vocab": 500, "hidden": 64, "layers": 8, "heads": 4, "kv_heads": 4, "head_dim": 16, "ffn": 256}
    )
    plan = initial(arch, 0, 0.02)
    for name, tensor in arch.tensors().items():
        value = plan.evaluate(name, Box.whole(tensor.shape), pytest.fail)
        if "norm" in name:
            assert (value == 1).all()
        else:
            branch = "o_proj" in name or "down_proj" in name
            assert value.std().item() == pytest.approx(0.02 / (4 if branch else 1), rel=0.05)


def test_architectures_are_values() -> None:
    arch = Architecture(
        "llama2", {"vocab": 5, "hidden": 4, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 4, "ffn": 8}
    )
    assert Architecture.from_json(arch.to_json()) == arch
    assert hash(Architecture.from_json(arch.to_json())) == hash(arch)
    assert arch.scalars == {"norm_eps": 1e-5, "softmax_scale": 0.5, "rope_theta": 10_000.0}
    assert arch != arch.replace(scalars={"norm_eps": 1e-6})


def test_growth_does_not_draw_what_a_fresh_model_has() -> None:
    """A random layer takes the place, the name and the shape of an old one, and the seed is that of the run."""
    first = initial(SMALL, 5, STD)
    policy = {"layers": {"operator": "insert", "at": [1], "init": "random"}}
    plan = between(SMALL, SMALL.replace({"layers": 3}), policy, seed=5, init_std=STD)
    name = "model.layers.1.mlp.up_proj.weight"
    drawn, old = whole(plan, name, reader(first)), whole(first, name, pytest.fail)
    assert (drawn != old).all()
    again = between(plan.new, plan.new.replace({"layers": 4}), policy, seed=5, init_std=STD)
    assert (whole(again, name, reader(plan, reader(first))) != drawn).all()

"""Dense growth with given and with learned factors; untying shared layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from growth import Box, GrowthError, between
from growth.certificate import relative_error
from growth.learn import Learner
from pretrain.families.reference import logits, loss
from tests.unit.growth.models import SMALL, STD, reader, tokens, trained, whole


def random(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=1)).standard_normal(shape)


def test_new_weights_are_products() -> None:
    write, read, weights, kv = random(9, 6), random(9, 6), random(5, 2), random(2, 1)
    heads, outputs = random(4, 2), random(4, 2)
    policy = {
        "hidden": {"operator": "dense", "write": write, "read": read},
        "layers": {"operator": "dense", "weights": weights},
        "heads": {"operator": "dense", "write": heads, "read": outputs, "kv_write": kv},
    }
    new = SMALL.replace({"hidden": 9, "layers": 5, "heads": 4, "kv_heads": 2})
    plan = between(SMALL, new, policy, seed=0, init_std=STD)
    assert not plan.preserves
    source = trained(SMALL)

    def old(name: str) -> np.ndarray:
        shape = SMALL.tensor(name.format(0)).shape
        stacked = np.stack([source("weight", name.format(i), Box.whole(shape)).numpy() for i in range(2)])
        return np.tensordot(weights[3], stacked, 1)

    q = np.kron(heads, np.eye(4)) @ old("model.layers.{}.self_attn.q_proj.weight") @ read.T
    o = write @ old("model.layers.{}.self_attn.o_proj.weight") @ np.kron(outputs, np.eye(4)).T
    gain = write @ old("model.layers.{}.input_layernorm.weight")
    for name, expected in (
        ("self_attn.q_proj", q),
        ("self_attn.o_proj", o),
        ("input_layernorm", gain),
    ):
        got = whole(plan, f"model.layers.3.{name}.weight", source).numpy()
        assert np.abs(got - expected).max() < 1e-12
    box = Box((3, 2), (7, 5))
    part = plan.evaluate("model.layers.3.mlp.down_proj.weight", box, source, dtype=torch.float64)
    cut = whole(plan, "model.layers.3.mlp.down_proj.weight", source)[box.slices()]
    assert (part - cut).abs().max() < 1e-12
    assert not whole(plan, "model.layers.3.mlp.down_proj.weight", source, "exp_avg").any()


def test_matrices_of_another_shape() -> None:
    policy = {"hidden": {"operator": "dense", "write": random(6, 9), "read": random(9, 6)}}
    with pytest.raises(GrowthError, match="write must be a matrix of 9 x 6"):
        between(SMALL, SMALL.replace({"hidden": 9}), policy, seed=0, init_std=STD)


def test_factors_are_learned() -> None:
    """Learning lowers the loss of the start, and the policy that it gives is the model that it learned."""
    read = trained(SMALL, dtype=torch.float32)
    new = SMALL.replace({"hidden": 9, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 11})
    ids = tokens(9, 4, 12)
    learner = Learner(read, SMALL, new, lr=3e-3)
    seen = [learner.step(lambda model: loss(model, new, ids)) for _ in range(8)]
    assert seen[-1] < seen[0]
    plan = between(SMALL, new, learner.policy(), seed=0, init_std=STD)
    assert loss(reader(plan, read, torch.float32), plan.new, ids).item() < seen[-1]
    with pytest.raises(GrowthError, match="vocab: dense growth is learned for"):
        Learner(read, SMALL, SMALL.replace({"vocab": 12}))


def test_learning_goes_on_where_it_was() -> None:
    read = trained(SMALL, dtype=torch.float32)
    new = SMALL.replace({"hidden": 9, "layers": 3})
    learners = [Learner(read, SMALL, new, lr=3e-3) for _ in range(2)]
    for step in range(6):
        ids = tokens(9, 4, 12 + step)
        if step == 3:
            other = Learner(read, SMALL, new, lr=3e-3)
            other.restore({name: x.clone() for name, x in learners[1].state().items()})
            learners[1] = other
        first, second = (learner.step(lambda model, ids=ids: loss(model, new, ids)) for learner in learners)
        assert first == second
    states = [learner.state() for learner in learners]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_shared_layers_get_their_own_weights() -> None:
    old = SMALL.replace(calls=(0, 0, 0, 0, 1, 1, 1, 1))
    read = trained(old)
    ids = tokens(9)
    expected = logits(read, old, ids, torch.float64)
    new = old.replace({"layers": 4}, calls=(0, 0, 1, 1, 2, 2, 3, 3))
    plan = between(old, new, {"layers": "untie"}, seed=0, init_std=STD)
    assert plan.preserves
    assert plan.new.blocks[4] == ("layer", 2)
    again = between(plan.new, plan.new.replace({"layers": 8}, calls=()), seed=0, init_std=STD)  # the default here
    assert again.operators == ("layers: untie",)
    joint = plan.then(again)
    assert relative_error(logits(reader(joint, read), joint.new, ids, torch.float64), expected) == 0
    for calls in ((0, 1, 2), (0, 1, 1, 1, 1, 1, 2, 2)):  # fewer blocks; one layer for blocks of both old ones
        with pytest.raises(GrowthError, match="8 blocks on 2 layers cannot be untied"):
            between(old, old.replace({"layers": 3}, calls=calls), {"layers": "untie"}, seed=0, init_std=STD)

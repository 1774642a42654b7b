"""Dense growth with given and with learned factors; untying shared layers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from growth import Architecture, Box, GrowthError, Plan, between
from growth.certificate import relative_error
from growth.evaluate.box_values import Read
from growth.learn import Learner
from growth.span import Span
from pretrain.families.reference import logits, loss
from tests.unit.growth.models import SMALL, STD, reader, tokens, trained, whole

GPT2 = Architecture(
    "gpt2", {"vocab": 9, "positions": 12, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 3, "ffn": 8}
)


def random(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=1)).standard_normal(shape)


def test_new_weights_are_products() -> None:
    write, read, weights, gate, up = random(9, 6), random(9, 6), random(5, 2), random(12, 8), random(12, 8)[::-1]
    heads, keys, outputs = random(4, 2), random(8, 4), random(16, 8)  # of heads, and of the channels of all heads
    policy = {
        "hidden": {"operator": "dense", "write": write, "read": read},
        "layers": {"operator": "dense", "weights": weights},
        "heads": {"operator": "dense", "query": heads, "key": keys, "value": keys[::-1], "read": outputs},
        "ffn": {"operator": "dense", "write": up, "gate": gate, "read": up},
    }
    new = SMALL.replace({"hidden": 9, "layers": 5, "heads": 4, "kv_heads": 2, "ffn": 12})
    plan = between(SMALL, new, policy, seed=0, init_std=STD)
    plan = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert not plan.preserves
    source = trained(SMALL)

    def old(name: str) -> np.ndarray:
        shape = SMALL.tensor(name.format(0)).shape
        stacked = np.stack([source("weight", name.format(i), Box.whole(shape)).numpy() for i in range(2)])
        return np.tensordot(weights[3], stacked, 1)

    for name, expected in {
        "self_attn.q_proj": np.kron(heads, np.eye(4)) @ old("model.layers.{}.self_attn.q_proj.weight") @ read.T,
        "self_attn.k_proj": keys @ old("model.layers.{}.self_attn.k_proj.weight") @ read.T,
        "self_attn.v_proj": keys[::-1] @ old("model.layers.{}.self_attn.v_proj.weight") @ read.T,
        "self_attn.o_proj": write @ old("model.layers.{}.self_attn.o_proj.weight") @ outputs.T,
        "mlp.gate_proj": gate @ old("model.layers.{}.mlp.gate_proj.weight") @ read.T,
        "mlp.up_proj": up @ old("model.layers.{}.mlp.up_proj.weight") @ read.T,
        "input_layernorm": write @ old("model.layers.{}.input_layernorm.weight"),
    }.items():
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
    heads = {"operator": "dense", **dict.fromkeys(("query", "key", "value", "read"), random(8, 4))}
    with pytest.raises(GrowthError, match=r"heads: query must be a matrix of 4 x 2 .* 16 x 8 for its channels"):
        between(SMALL, SMALL.replace({"heads": 4, "kv_heads": 2}), {"heads": heads}, seed=0, init_std=STD)


def test_stored_matrices_of_another_shape() -> None:
    policy = {"ffn": {"operator": "dense", "write": random(12, 8), "read": random(12, 8)[::-1]}}
    data = between(SMALL, SMALL.replace({"ffn": 12}), policy, seed=0, init_std=STD).to_json()
    data["steps"][0]["axes"][0]["mixes"]["read"]["shape"] = [6, 16]
    with pytest.raises(GrowthError, match=r"shape .6, 16. has no rows of 8"):
        Plan.from_json(data)


def test_channels_are_mixed_before_heads_grow_wider() -> None:
    """A matrix over all channels of heads, and more channels of each head in one event: one after the other."""
    heads = {"operator": "dense", "query": random(16, 8), "key": random(8, 4), "value": random(8, 4)}
    policy = {"heads": {**heads, "read": random(16, 8)}}
    middle = SMALL.replace({"heads": 4, "kv_heads": 2})
    new, read = middle.replace({"head_dim": 8}), trained(SMALL)
    at_once = between(SMALL, new, policy, seed=0, init_std=STD)
    then = between(SMALL, middle, policy, seed=0, init_std=STD).then(between(middle, new, seed=0, init_std=STD))
    for name in new.tensors():
        torch.testing.assert_close(whole(at_once, name, read), whole(then, name, read), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("arch", [SMALL, replace(SMALL, span=Span(8, 4)), replace(GPT2, span=Span(8, 4))])
def test_factors_are_learned(arch: Architecture) -> None:
    """Learning lowers the loss of the start, and the policy that it gives is the model that it learned."""
    read = trained(arch, dtype=torch.float32)
    more = {"hidden": 9, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 11}
    new = arch.replace({axis: size for axis, size in more.items() if axis in arch.sizes})
    ids = tokens(9, 4, 12)
    learner = Learner(read, arch, new, lr=3e-3)
    seen = [learner.step(lambda model: loss(model, new, ids)) for _ in range(8)]
    assert seen[-1] < seen[0]
    plan, made = between(arch, new, learner.policy(), seed=0, init_std=STD), {}

    def objective(model: Read) -> torch.Tensor:
        made.update({name: model("weight", name, Box.whole(t.shape)).detach() for name, t in new.tensors().items()})
        return loss(model, new, ids)

    assert learner.step(objective) < seen[-1]
    for name, weight in made.items():
        torch.testing.assert_close(whole(plan, name, read, dtype=torch.float32), weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(GrowthError, match="vocab: dense growth is learned for"):
        Learner(read, arch, arch.replace({"vocab": 12}))


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

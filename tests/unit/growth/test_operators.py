"""Every operator on every family: exact where it claims to be, the same in any box, replayed from its plan."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth import Box, GrowthError, Plan, between
from growth.certificate import relative_error
from growth.describe import describe_plan
from growth.evaluate import dimension, gather, index_runs
from growth.evaluate.box_values import Read
from growth.evaluate.sources import MixCache
from pretrain import families
from pretrain.families.reference import logits
from tests.unit.growth.events import events
from tests.unit.growth.models import SMALL, STD, boxes, reader, tokens, trained, whole

KINDS = ("weight", "exp_avg", "exp_avg_sq")


def outputs(read: Read, plan: Plan, old: bool) -> torch.Tensor:
    """The logits of old ids, and BERT's second head."""
    assert plan.old is not None
    arch = plan.old if old else plan.new
    ids = tokens(plan.old.sizes["vocab"], 2, 7)
    words = logits(read, arch, ids, torch.float64)[..., : plan.old.sizes["vocab"]].flatten()
    if arch.family != "bert":
        return words
    order = families.of(arch.family).reference(read, arch, {"inputs": ids}, torch.float64)["next_sentence"]
    return torch.cat((words, order.flatten()))


@given(events())
@settings(max_examples=70)
def test_operators_that_claim_to_preserve_do(plan: Plan) -> None:
    assert plan.preserves
    read = trained(plan.old)
    assert relative_error(outputs(reader(plan, read), plan, False), outputs(read, plan, True)) < 1e-10


@given(events(), st.data())
@settings(max_examples=20)
def test_events_compose(first: Plan, data: st.DataObject) -> None:
    joint = first
    for _ in range(data.draw(st.integers(1, 2))):
        joint = joint.then(data.draw(events(old=joint.new)))
    assert joint.preserves
    read = trained(first.old)
    assert relative_error(outputs(reader(joint, read), joint, False), outputs(read, joint, True)) < 1e-10
    for name in data.draw(st.lists(st.sampled_from(sorted(joint.new.tensors())), max_size=4)):
        box = data.draw(boxes(joint.new.tensor(name).shape))
        for kind in ("weight", "exp_avg"):
            part = joint.evaluate(name, box, read, kind, torch.float64)
            assert torch.equal(part, whole(joint, name, read, kind)[box.slices()])


@given(events(exact=False), st.data())
@settings(max_examples=80)
def test_growing_a_box_is_cutting_a_box_of_the_grown(plan: Plan, data: st.DataObject) -> None:
    read = trained(plan.old, dtype=torch.float32)
    for name in data.draw(st.lists(st.sampled_from(sorted(plan.new.tensors())), max_size=8)):
        box = data.draw(boxes(plan.new.tensor(name).shape))
        for kind in KINDS:
            part = plan.evaluate(name, box, read, kind)
            cut = whole(plan, name, read, kind, torch.float32)[box.slices()]
            assert part.numpy().tobytes() == cut.numpy().tobytes()
            place = torch.full(box.shape[::-1], torch.nan).permute(*range(len(box.shape))[::-1])  # of other strides
            assert plan.evaluate(name, box, read, kind, out=place) is place
            assert torch.equal(place, part)


@given(events(exact=False))
@settings(max_examples=30)
def test_slices_gathers_and_chunks_are_the_same(plan: Plan) -> None:
    """Small tensors are copied run by run and in one chunk; here they are treated as large ones."""
    read = trained(plan.old, dtype=torch.float32)
    every = [(name, kind) for name in plan.new.tensors() for kind in KINDS]
    expected = [whole(plan, name, read, kind, torch.float32) for name, kind in every]
    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))  # without what is kept of the first
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (index_runs, "_FEW", 0),
            (index_runs, "_LARGE", 6),
            (index_runs, "_NARROW", 2),
            (gather, "_CHUNK", 5),
            (dimension, "_SCATTERED", 0),
            (dimension, "_GAP", 0),
        ):
            patch.setattr(module, name, value)
        cache: MixCache = {}
        for (name, kind), want in zip(every, expected, strict=True):
            box = Box.whole(want.shape)
            assert torch.equal(replayed.evaluate(name, box, read, kind, cache=cache), want)


@given(events(exact=False))
@settings(max_examples=15)
def test_plans_are_saved_and_replayed(plan: Plan) -> None:
    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert describe_plan(replayed) == describe_plan(plan)
    assert replayed.approximate == plan.approximate
    read = trained(plan.old, dtype=torch.float32)
    for name in plan.new.tensors():
        for kind in KINDS:
            assert torch.equal(whole(plan, name, read, kind), whole(replayed, name, read, kind))


def layers(policy: object, old: int, new: int) -> list[int]:
    """The source of each new layer."""
    arch = SMALL.replace({"layers": old})
    plan = between(arch, arch.replace({"layers": new}), {"layers": policy}, seed=0, init_std=STD)
    (step,) = plan.steps
    assert step.layers is not None
    return step.layers.source[:, 0].tolist()


def test_where_layers_come_from() -> None:
    assert layers("identity", 4, 6) == [0, 1, 1, 2, 3, 3]
    assert layers("identity", 0, 2) == [-1, -1]
    assert layers("stack", 3, 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert layers("interleave", 3, 6) == [0, 0, 1, 1, 2, 2]
    assert layers("interleave", 3, 5) == [0, 0, 1, 1, 2]
    assert layers("middle", 4, 6) == [0, 1, 2, 1, 2, 3]
    assert layers("average", 2, 4) == [0, 0, 1, 1]
    assert layers({"operator": "insert", "at": [0, {"index": 3, "source": 0}]}, 2, 4) == [0, 0, 1, 0]
    assert layers("drop", 6, 3) == [0, 2, 4]
    assert layers({"operator": "drop", "keep": [5, 0]}, 6, 2) == [0, 5]


def test_insert_indexes_as_python_does() -> None:
    """Ten letters by nine patches, each against the list so far."""
    arch = SMALL.replace({"layers": 1})
    at = [{"index": i, "init": "random"} for i in [1, 1, 2, 2, 2, 3, 3, 3, 4]]
    names, expected = ["a"], "acfijhgedb"
    for patch, letter in zip(at, "bcdefghij", strict=True):
        names.insert(int(patch["index"]), letter)
    assert "".join(names) == expected
    plan = between(arch, arch.replace({"layers": 10}), {"layers": {"operator": "insert", "at": at}}, seed=0, init_std=1)
    assert plan.steps[0].layers is not None
    assert plan.steps[0].layers.source[:, 0].tolist() == [0] + [-1] * 9  # a is first, as in the list


def test_averages_are_means_of_neighbours() -> None:
    arch = SMALL
    plan = between(arch, arch.replace({"layers": 4}), {"layers": "average"}, seed=0, init_std=STD)
    read = trained(arch)
    name = "model.layers.{}.mlp.up_proj.weight"
    box = Box.whole((8, 6))
    a, b = (read("weight", name.format(i), box) for i in range(2))
    assert torch.equal(whole(plan, name.format(1), read), a * 0.5 + b * 0.5)
    assert torch.equal(whole(plan, name.format(3), read), b)
    assert not plan.preserves


def test_aki_takes_new_rows_from_the_next_layer() -> None:
    plan = between(SMALL, SMALL.replace({"hidden": 9}), {"hidden": "aki"}, seed=0, init_std=STD)
    read = trained(SMALL)
    assert torch.equal(
        whole(plan, "model.layers.0.mlp.down_proj.weight", read)[6:],
        read("weight", "model.layers.1.mlp.down_proj.weight", Box((0, 0), (3, 8))),
    )
    last = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(whole(plan, last, read)[6:], read("weight", last, Box((0, 0), (3, 8))))


def test_noise_has_the_power_that_was_asked_for() -> None:
    arch = SMALL.replace({"ffn": 500})
    read = trained(arch)
    name = "model.layers.0.mlp.down_proj.weight"
    new = arch.replace({"ffn": 1000})
    clean, noisy = (
        whole(between(arch, new, {"ffn": {"operator": "replicate", "snr_db": snr}}, seed=0, init_std=STD), name, read)
        for snr in (None, 20.0)
    )
    assert torch.allclose(clean[:, :500] + clean[:, 500:], noisy[:, :500] + noisy[:, 500:], rtol=0, atol=1e-12)
    power = ((noisy - clean).square().sum() / clean.square().sum()).item()
    assert power == pytest.approx(0.01 * 0.5, rel=0.2)  # of two copies half the noise is left after their mean


def test_an_operator_for_another_direction() -> None:
    with pytest.raises(GrowthError, match="or name the operator drop"):
        between(SMALL, SMALL.replace({"layers": 1}), {}, seed=0, init_std=STD)
    with pytest.raises(GrowthError, match="grows, but drop makes it smaller"):
        between(SMALL, SMALL.replace({"layers": 3}), {"layers": "drop"}, seed=0, init_std=STD)

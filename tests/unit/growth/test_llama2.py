"""Growth of LLaMA-2 by the default policies: preserved, trainable, the same in any box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth import Architecture, Box, GrowthError, Plan, between, identity
from growth.certificate import Certificate, relative_error
from growth.describe import describe_plan
from pretrain.families.reference import logits
from pretrain.verify.probe import certify
from tests.unit.growth.models import SMALL, STD, boxes, fresh, grown_llama2, llama2, reader, tokens, trained, whole

KINDS = ("weight", "exp_avg", "exp_avg_sq")


@st.composite
def events(draw: st.DrawFn) -> Plan:
    old = draw(llama2())
    new = draw(grown_llama2(old))
    ids = st.lists(st.integers(0, old.sizes["vocab"] - 1), min_size=1, max_size=3)
    count = new.sizes["vocab"] - old.sizes["vocab"]
    pieces = draw(st.lists(ids, min_size=count, max_size=count))
    policy = {"vocab": draw(st.sampled_from(["random", "zero", "mean", "pieces"]))}
    return between(old, new, policy, seed=draw(st.integers(0, 99)), init_std=STD, pieces=pieces)


@given(st.lists(st.integers(0, 2**30), min_size=1, max_size=3), st.data())
@settings(max_examples=12)
def test_sequences_of_events_preserve_the_function(seeds: list[int], data: st.DataObject) -> None:
    arch = first = data.draw(llama2(max_layers=2))
    ids = tokens(first.sizes["vocab"])
    read = trained(first)
    expected = logits(read, first, ids, torch.float64)
    for seed in seeds:
        plan = between(arch, data.draw(grown_llama2(arch)), {"vocab": "mean"}, seed=seed, init_std=STD)
        assert plan.preserves
        read, arch = reader(plan, read), plan.new
    assert relative_error(logits(read, arch, ids, torch.float64)[..., : first.sizes["vocab"]], expected) < 1e-10


@given(events(), st.data())
@settings(max_examples=40)
def test_growing_a_box_is_cutting_a_box_of_the_grown(plan: Plan, data: st.DataObject) -> None:
    assert plan.old is not None
    read = trained(plan.old, dtype=torch.float32)
    name = data.draw(st.sampled_from(sorted(plan.new.tensors())))
    kind = data.draw(st.sampled_from(KINDS))
    box = data.draw(boxes(plan.new.tensor(name).shape))
    part = plan.evaluate(name, box, read, kind)
    assert part.shape == box.shape
    assert part.numpy().tobytes() == whole(plan, name, read, kind, torch.float32)[box.slices()].numpy().tobytes()


@given(events(), st.data())
def test_reads_names_what_evaluate_reads(plan: Plan, data: st.DataObject) -> None:
    assert plan.old is not None
    inner = trained(plan.old, dtype=torch.float32)
    name = data.draw(st.sampled_from(sorted(plan.new.tensors())))
    box = data.draw(boxes(plan.new.tensor(name).shape))
    seen: list[tuple[str, Box]] = []

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        seen.append((name, box))
        return inner(kind, name, box)

    plan.evaluate(name, box, read)
    assert seen == list(plan.reads(name, box))


@given(events())
@settings(max_examples=15)
def test_old_moments_follow_the_gradients(plan: Plan) -> None:
    """The gradients of a preserved function transform as the plan transforms exp_avg, and exp_avg_sq by the square."""
    assert plan.old is not None
    if plan.new.sizes["vocab"] > plan.old.sizes["vocab"] or _splits_groups(plan):
        return  # these only approximate: the softmax changes; the gradients of copies sum to the old one
    read = trained(plan.old)
    ids = tokens(plan.old.sizes["vocab"])
    before = gradients(plan.old, {n: whole(identity(plan.old), n, read) for n in plan.old.tensors()}, ids)
    after = gradients(plan.new, {n: whole(plan, n, read) for n in plan.new.tensors()}, ids)
    for name, tensor in plan.new.tensors().items():
        box = Box.whole(tensor.shape)
        born = plan.new_mask(name, box)
        scale = max(float(after[name].abs().max()), 1e-30)
        for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            moment = plan.evaluate(name, box, lambda _, n, b, p=power: before[n][b.slices()] ** p, kind, torch.float64)
            assert (moment[born] == 0).all()
            assert ((moment - after[name] ** power).abs()[~born] <= 1e-9 * scale**power).all(), (name, kind)


def _splits_groups(plan: Plan) -> bool:
    """Whether key-value heads are copied: then the queries of a group become fewer."""
    assert plan.old is not None
    old, new = plan.old.sizes, plan.new.sizes
    return new["heads"] // new["kv_heads"] < old["heads"] // old["kv_heads"]


def gradients(arch: Architecture, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
    out = logits(lambda kind, name, box: leaves[name][box.slices()], arch, ids, torch.float64)
    loss = torch.nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@given(st.data())
@settings(max_examples=15)
def test_no_new_parameter_is_dead(data: st.DataObject) -> None:
    old = data.draw(llama2(max_layers=2).filter(lambda a: a.sizes["hidden"] > 4))
    plan = between(old, data.draw(grown_llama2(old)), {"vocab": "random"}, seed=5, init_std=STD)
    vocab = plan.new.sizes["vocab"]
    certificate = certify(
        plan,
        fresh(old),
        tokens(old.sizes["vocab"]),
        lr=1e-2,
        train_ids_BS=tokens(vocab, 4, 16),
        dtype=torch.float64,
        tolerance=1e-10,
    )
    assert certificate.preserved
    assert certificate.dead_share == 0, str(certificate)


@given(events())
def test_plans_are_saved_and_replayed(plan: Plan) -> None:
    import json

    assert plan.old is not None
    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert replayed.new == plan.new
    assert replayed.preserves == plan.preserves
    assert describe_plan(replayed) == describe_plan(plan)
    read = trained(plan.old, dtype=torch.float32)
    for name in plan.new.tensors():
        for kind in KINDS:
            assert torch.equal(whole(plan, name, read, kind), whole(replayed, name, read, kind))


def test_one_event_is_one_step() -> None:
    old = Architecture(
        "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
    )
    new = old.replace({"vocab": 12, "hidden": 8, "layers": 3, "heads": 4, "kv_heads": 2, "ffn": 12})
    plan = between(old, new, {}, seed=0, init_std=STD, pieces=[[1], [2, 3], [4]])
    assert len(plan.steps) == 1
    assert len(str(plan.to_json())) < 3000


def test_composed_plans_are_the_plans_one_after_the_other() -> None:
    old = Architecture(
        "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
    )
    middle = between(old, old.replace({"hidden": 9, "layers": 3}), {}, seed=1, init_std=STD)
    last = between(middle.new, middle.new.replace({"hidden": 12, "layers": 5}), {}, seed=2, init_std=STD)
    joint = middle.then(last)
    assert len(joint.steps) == 2  # the same axes twice
    read = trained(old)
    ids = tokens(9)
    out = logits(reader(joint, read), joint.new, ids, torch.float64)
    assert relative_error(out, logits(read, old, ids, torch.float64)) < 1e-10
    for name, tensor in joint.new.tensors().items():
        born = joint.new_mask(name, Box.whole(tensor.shape))
        expected = whole(last, name, reader(middle, read))
        assert torch.equal(whole(joint, name, read)[~born], expected[~born])
    with pytest.raises(GrowthError, match="cannot follow"):
        last.then(middle)


def test_a_resume_returns_what_was_read() -> None:
    arch = Architecture(
        "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
    )
    stored = torch.arange(6.0)
    box = Box((1,), (4,))
    got = identity(arch).evaluate("model.norm.weight", box, lambda kind, name, b: stored[b.slices()], "exp_avg")
    assert got.data_ptr() == stored[1:].data_ptr()


def test_planted_faults_are_found() -> None:
    """A gain without its epsilon, and one forgotten zero, fail the certificate of a plan that claims to preserve."""
    old = Architecture(
        "llama2", {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
    )
    plan = between(old, old.replace({"hidden": 12}), {}, seed=1, init_std=STD)
    read = trained(old)
    ids = tokens(9)
    right = logits(read, old, ids, torch.float64)
    wrong = logits(reader(plan, read), plan.new.replace(scalars=old.scalars), ids, torch.float64)
    assert relative_error(wrong, right) > 1e-6
    certificate = Certificate.of(plan, error=relative_error(wrong, right), tolerance=1e-10, loss_before=1, loss_after=1)
    with pytest.raises(GrowthError, match="claims to preserve"):
        certificate.require()


def test_nothing_stays_a_copy_by_default() -> None:
    """Replication by default: exact in single precision to 1e-6, nothing dead after a step or locked after ten."""
    old = SMALL.replace({"hidden": 8, "heads": 4, "kv_heads": 2})
    new = old.replace({"hidden": 16, "heads": 8, "kv_heads": 4, "ffn": 16})
    policy = {"hidden": "replicate", "heads": "replicate", "ffn": "replicate"}
    plan = between(old, new, policy, seed=0, init_std=STD)
    certificate = certify(plan, trained(old, dtype=torch.float32), tokens(9, 4, 16), lr=1e-3)
    assert certificate.error < 1e-6
    assert certificate.dead_share == 0
    assert set(certificate.locked) == {"hidden", "heads", "kv_heads", "ffn"}
    assert all(later == 0 for _, later in certificate.locked.values())
    quiet = {key: {"operator": "replicate", "snr_db": None} for key in policy}
    still = certify(between(old, new, quiet, seed=0, init_std=STD), trained(old), tokens(9), lr=1e-3)
    assert all(shares == (1.0, 1.0) for shares in still.locked.values())

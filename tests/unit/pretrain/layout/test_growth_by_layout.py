"""Growing the shards is sharding the grown: every operator, on the boxes of every rank of any layout, bit for bit.

Layouts are pure arithmetic, so no processes are needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growth import Architecture, Box, Plan, between
from pretrain.families.parameters import parameters
from pretrain.layout.layout import Layout
from pretrain.layout.zero import fragment_boxes, fragments
from tests.unit.growth.models import trained, whole

KINDS = ("weight", "exp_avg", "exp_avg_sq")
SAMPLED = 25  # of the boxes of every layout where each is a product of matrices
# Heads, groups and neurons are multiples of 12 after growth: tensor-parallel sizes 1 to 4 divide them.
OLD = {
    "llama2": {"vocab": 13, "hidden": 4, "layers": 2, "heads": 12, "kv_heads": 6, "head_dim": 2, "ffn": 12},
    "gpt2": {"vocab": 13, "positions": 6, "hidden": 4, "layers": 2, "heads": 6, "head_dim": 2, "ffn": 12},
    "bert": {"vocab": 13, "positions": 6, "types": 2, "labels": 2}
    | {"hidden": 4, "layers": 2, "heads": 6, "head_dim": 2, "ffn": 12},
}
NEW = {"vocab": 17, "hidden": 8, "layers": 3, "heads": 12, "head_dim": 4, "ffn": 24}
STACKS = ("stack", {"operator": "stack", "noise": 0.1})
REPLICATES = ("replicate", *({"operator": "replicate", "snr_db": None, "split": split} for split in (None, 0.25)))
CHOICES: dict[str, list[Any]] = {
    "layers": ["identity", "interleave", "middle", "average", {"operator": "insert", "at": [1]}, *STACKS],
    "hidden": ["zero", {"operator": "zero", "keep_eps": True}, "net2net", "aki", *REPLICATES],
    "heads": ["zero", "replicate", "net2net", "aki"],
    "ffn": ["zero", "zero_gate_and_down", "replicate", "net2net", "aki"],
    "vocab": ["random", "zero", "mean", "pieces"],
}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    family = draw(st.sampled_from(sorted(OLD)))
    old = Architecture(family, OLD[family])
    new = NEW | ({"heads": 24, "kv_heads": 12} if family == "llama2" else {})
    sizes = {axis: size for axis, size in new.items() if axis in ("heads", "kv_heads", "ffn") or draw(st.booleans())}
    policy = {key: draw(st.sampled_from(found)) for key, found in CHOICES.items()}
    if family == "llama2":
        policy["head_dim"] = draw(st.sampled_from(["rotary", "rotary_table"]))
    return between(old, old.replace(sizes), policy, seed=0, init_std=0.3, pieces=[[1, 2], [3], [4, 5, 6], [0]])


@given(plans(), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3, 5]))
@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_growing_shards_is_sharding_the_grown(plan: Plan, tp: int, pp: int, dp: int) -> None:
    assert plan.old is not None
    read = trained(plan.old, dtype=torch.float32)
    tensors = plan.new.tensors()
    grown = {(k, n): whole(plan, n, read, k, torch.float32) for k in KINDS for n in tensors}
    covered = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in tensors.items()}
    layout = Layout.make(plan.new.layers, tp=tp, pp=min(pp, plan.new.layers), dp=dp)
    for rank in range(layout.world):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(plan.new, layout, pp_rank, tp_rank)
        for fragment in fragments(table, dp, dp_rank):
            assert fragment.start + fragment.numel <= prod(table[fragment.index].shape)
            flat = torch.full((fragment.numel,), torch.nan)
            for found in fragment_boxes(table[fragment.index], fragment.start, fragment.numel):
                covered[found.tensor][found.box.slices()] = True
                for kind in KINDS:
                    place = found.view(flat)
                    plan.evaluate(found.tensor, found.box, read, kind, out=place)
                    cut = grown[kind, found.tensor][found.box.slices()]
                    assert place.numpy().tobytes() == cut.numpy().tobytes(), (found.tensor, found.box, kind)
    assert all(c.all() for c in covered.values())


def ranks(arch: Architecture, layout: Layout) -> Iterator[list[tuple[str, Box]]]:
    """The boxes that each rank holds."""
    for rank in range(layout.world):
        pp_rank, dp_rank, tp_rank = layout.coordinates(rank)
        table = parameters(arch, layout, pp_rank, tp_rank)
        yield [
            (found.tensor, found.box)
            for f in fragments(table, layout.dp, dp_rank)
            for found in fragment_boxes(table[f.index], f.start, f.numel)
        ]


def boxes_of_every_layout(arch: Architecture) -> set[tuple[str, Box]]:
    """All boxes that a rank of any TP {1, 2, 3, 4} x PP {1, 2, 3} x DP {1, 2, 3, 5} holds."""
    sizes = itertools.product([1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 5])
    layouts = [Layout.make(arch.layers, tp=tp, pp=pp, dp=dp) for tp, pp, dp in sizes]
    return {box for layout in layouts for held in ranks(arch, layout) for box in held}


@pytest.mark.parametrize("family", sorted(OLD))
def test_every_layout(family: str) -> None:
    """All 48 layouts, an event that takes part in every axis and whose every element has one source."""
    old = Architecture(family, OLD[family])
    more = {"heads": 24, "kv_heads": 12} if family == "llama2" else {"positions": 8}
    policy = {"layers": "stack", "hidden": "replicate", "heads": "replicate", "vocab": "random"}
    plan = between(old, old.replace(NEW | more), policy, seed=0, init_std=0.3)
    read = trained(old, dtype=torch.float32)
    grown = {(k, n): whole(plan, n, read, k, torch.float32) for k in KINDS for n in plan.new.tensors()}
    held = boxes_of_every_layout(plan.new)
    assert {name for name, _ in held} == set(plan.new.tensors())
    for name, box in held:
        for kind in KINDS:
            part = plan.evaluate(name, box, read, kind)
            assert part.numpy().tobytes() == grown[kind, name][box.slices()].numpy().tobytes(), (name, box, kind)


@pytest.mark.parametrize("family", sorted(OLD))
def test_sums_in_every_layout(family: str) -> None:
    """Learned factors are products of matrices, summed in the order of the library: in double precision to 1e-12 of the
    largest element, whatever the box (means, which are sums too, are bitwise: see above)."""
    old = Architecture(family, OLD[family])
    sizes = NEW | ({"heads": 24, "kv_heads": 12} if family == "llama2" else {})
    draw = np.random.Generator(np.random.Philox(key=3))

    def dense(each: int = 1, **axes: str) -> dict[str, Any]:
        """Of so many channels of each index."""
        shapes = {option: (each * sizes[axis], each * old.sizes[axis]) for option, axis in axes.items()}
        return {"operator": "dense", **{option: draw.standard_normal(shape) for option, shape in shapes.items()}}

    kv = "kv_heads" if family == "llama2" else "heads"
    policy = {
        "layers": {"operator": "dense", "weights": draw.standard_normal((3, 2))},
        "hidden": dense(write="hidden", read="hidden"),
        "heads": dense(old.sizes["head_dim"], query="heads", key=kv, value=kv, read="heads"),
        "ffn": dense(write="ffn", read="ffn"),
        "vocab": "mean",
    }
    plan = between(old, old.replace(sizes), policy, seed=0, init_std=0.3)
    read = trained(old)
    grown = {name: whole(plan, name, read) for name in plan.new.tensors()}
    for name, box in sorted(boxes_of_every_layout(plan.new))[::SAMPLED]:
        part, full = plan.evaluate(name, box, read, dtype=torch.float64), grown[name]
        assert (part - full[box.slices()]).abs().max() <= 1e-12 * full.abs().max(), (name, box)


def test_every_rank_reads_only_what_its_boxes_are_made_of() -> None:
    """Tensor-parallel ranks together read a matrix about once, not once each."""
    old = Architecture("llama2", OLD["llama2"])
    new = old.replace({"hidden": 8, "heads": 24, "kv_heads": 12, "ffn": 24})
    plan = between(old, new, {}, seed=0, init_std=0.3)
    name = "model.layers.0.mlp.up_proj.weight"
    boxes = [Box((6 * r, 0), (6 * r + 6, 8)) for r in range(4)]
    reads = [box.numel for b in boxes for _, box in plan.reads(name, b)]
    assert sum(reads) == 12 * 4

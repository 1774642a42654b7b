"""Impossible requests end in one error that names the axis, the sizes and what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from growth import Architecture, Box, GrowthError, Plan, between, initial

SIZES = {"vocab": 9, "hidden": 6, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ffn": 8}
SMALL = Architecture("llama2", SIZES)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 3}, "heads = 3 is not a multiple of kv_heads = 2"),
        ({"head_dim": 5}, "head_dim = 5 is odd"),
        ({"ffn": 0}, "ffn = 0 must be an integer from 1 to"),
        ({"ffn": 2.5}, "ffn = 2.5 must be an integer"),
        ({"width": 3}, "llama2 has no axis width"),
    ],
)
def test_sizes_that_make_no_model(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(GrowthError, match=re.escape(message)):
        Architecture("llama2", {**SIZES, **sizes})


def test_missing_sizes_families_and_scalars() -> None:
    with pytest.raises(GrowthError, match="no size for ffn, vocab"):
        Architecture("llama2", {k: v for k, v in SIZES.items() if k not in ("ffn", "vocab")})
    with pytest.raises(GrowthError, match=r"there is no family 'lama': choose one of .*llama2"):
        Architecture("lama", SIZES)
    with pytest.raises(GrowthError, match="has no scalar eps"):
        Architecture("llama2", SIZES, {"eps": 1.0})


@pytest.mark.parametrize("axis", ["vocab", "hidden", "layers", "ffn"])
def test_shrinking_names_the_axis_and_both_sizes(axis: str) -> None:
    smaller = SMALL.replace({axis: SIZES[axis] - 1})
    with pytest.raises(GrowthError, match=f"{axis} would shrink from {SIZES[axis]} to {SIZES[axis] - 1}"):
        between(SMALL, smaller, {}, seed=0, init_std=0.1)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"hidden": "wide"}, "hidden: there is no operator 'wide': choose one of "),
        ({"widht": "zero"}, "a growth policy has no key 'widht': its keys are layers, hidden"),
        ({"hidden": {"operator": "zero", "noise": 1}}, "hidden: zero has no option noise"),
        ({}, "vocab: 9 to 11: pieces (the default) needs the old pieces of every new token; give them, or choose mean"),
    ],
)
def test_policies_that_are_none(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(GrowthError, match=re.escape(message)):
        between(SMALL, SMALL.replace({"hidden": 8, "vocab": 11}), policy, seed=0, init_std=0.1)


@pytest.mark.parametrize(
    ("sizes", "policy", "message"),
    [
        ({"head_dim": 6}, {}, "head_dim: 4 to 6: rotary embeddings allow whole factors only, because the frequencies"),
        ({"head_dim": 6}, {}, "choose 4 or 8, or the operator rotary_table"),
        ({"head_dim": 8}, {"head_dim": "zero"}, "head_dim: 4 to 8: padding the tail is not exact"),
        ({"hidden": 9}, {"hidden": "replicate"}, "hidden: 6 to 9 is not a whole multiple, which replicate needs"),
        ({"ffn": 12}, {"ffn": "replicate"}, "choose 8 or 16, or the operator net2net or zero"),
        ({"heads": 6, "kv_heads": 3}, {"heads": "replicate"}, "heads: 4 to 6 is not a whole multiple"),
        ({"heads": 8, "kv_heads": 8}, {"heads": "replicate"}, "kv_heads: 2 to 8 with heads 4 to 8"),
        ({"heads": 8}, {"heads": "net2net"}, "net2net copies whole groups of 2 queries"),
        ({"ffn": 16}, {"ffn": {"operator": "replicate", "snr_db": "loud"}}, "snr_db is 'loud'"),
        ({"ffn": 16}, {"ffn": {"operator": "replicate", "split": 1}}, "split is 1: give the share"),
        ({"ffn": 16}, {"ffn": {"operator": "net2net", "mapping": "any"}}, "there is no mapping 'any'"),
        ({"layers": 3}, {"layers": "insert"}, "layers: insert needs the option at"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": [3]}}, "index 3, but there are 2 layers by then"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": [0, 0]}}, "2 to 3 needs 1 patches, not 2"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": [{"index": 0, "source": 2}]}}, "has source 2"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": [{"place": 0}]}}, "has no key place"),
        ({"layers": 5}, {"layers": "middle"}, "the middle block cannot be longer than the 2 layers"),
        ({"layers": 4}, {"layers": {"operator": "stack", "init": "half"}}, "there is no init half"),
        ({"layers": 4}, {"layers": {"operator": "average", "noise": -1}}, "layers: noise is -1: give a relative"),
        ({"layers": 4}, {"layers": "untie"}, "2 blocks on 2 layers cannot be untied to 4"),
        (
            {"layers": 1},
            {"layers": {"operator": "drop", "keep": [2]}},
            "keeps 1 different layers, at least one, out of 0 to 1",
        ),
        ({"layers": 1}, {"layers": {"operator": "drop", "keep": 1}}, "layers: keep is 1: give a list of old layers"),
        ({"layers": 0}, {"layers": "drop"}, "2 to 0 keeps 0 different layers, at least one"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": 2}}, "layers: at is 2: give a list of positions"),
        ({"layers": 3}, {"layers": {"operator": "insert", "at": [-1]}}, "index -1, but there are 2 layers by then"),
        ({"layers": 3}, {"layers": {"operator": "stack", "init": None}}, "there is no init None"),
        ({"layers": 3}, {"layers": {"operator": "dense", "weights": "x"}}, "layers: weights is no matrix of numbers"),
        ({"hidden": 12}, {"hidden": {"operator": ["zero"]}}, "hidden: there is no operator ['zero']"),
        ({"hidden": 12}, {"hidden": {"operator": "zero", "keep_eps": "no"}}, "hidden: keep_eps is 'no'"),
        ({"ffn": 16}, {"ffn": {"operator": "replicate", "snr_db": float("inf")}}, "ffn: snr_db is inf"),
        ({"kv_heads": 4}, {"heads": "net2net"}, "heads 4 to 4 with kv_heads 2 to 4: net2net copies whole groups"),
        ({"vocab": 12}, {"vocab": "drop"}, "grows, but drop makes it smaller"),
    ],
)
def test_what_an_operator_cannot_do(sizes: dict[str, int], policy: dict[str, Any], message: str) -> None:
    with pytest.raises(GrowthError, match=re.escape(message)):
        between(SMALL, SMALL.replace(sizes), policy, seed=0, init_std=0.1)


def test_groups_that_cannot_be_split() -> None:
    old = SMALL.replace({"heads": 6, "kv_heads": 2})
    with pytest.raises(GrowthError, match="groups of 3 queries cannot become groups of 2"):
        between(old, old.replace({"heads": 8, "kv_heads": 4}), {}, seed=0, init_std=0.1)


def test_plans_for_another_model() -> None:
    plan = between(SMALL, SMALL.replace({"hidden": 8}), {}, seed=0, init_std=0.1)
    with pytest.raises(GrowthError, match="has no tensor"):
        plan.evaluate("model.layers.2.mlp.up_proj.weight", Box.whole((8, 8)), lambda *_: torch.zeros(8, 6))
    with pytest.raises(GrowthError, match="does not lie in the shape"):
        plan.evaluate("model.norm.weight", Box.whole((9,)), lambda *_: torch.zeros(6))
    with pytest.raises(GrowthError, match="there is no kind 'master'"):
        plan.evaluate("model.norm.weight", Box.whole((8,)), lambda *_: torch.zeros(6), "master")
    with pytest.raises(GrowthError, match="was given the shape"):
        plan.evaluate("model.norm.weight", Box.whole((8,)), lambda *_: torch.zeros(5))
    with pytest.raises(GrowthError, match="must lead from"):
        Plan(SMALL, SMALL, plan.steps, 0, 0.1)
    with pytest.raises(GrowthError, match="format 99"):
        Plan.from_json({**initial(SMALL, 0, 0.1).to_json(), "format": 99})

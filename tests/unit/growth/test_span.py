"""Spans of heads under growth: exact in double precision, in heads, depth and width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from growth import Architecture, Box, GrowthError, between
from growth.certificate import relative_error
from growth.evaluate.box_values import Read
from growth.span import Span
from pretrain.families.reference import logits, loss
from tests.unit.growth.models import reader, trained

SPAN, PENALTY = Span(max=24, ramp=6), 0.1
SIZES = {"vocab": 11, "hidden": 8, "layers": 2, "heads": 4, "head_dim": 4, "ffn": 6}
LLAMA2 = Architecture("llama2", {**SIZES, "kv_heads": 2}, span=SPAN)
GPT2 = Architecture("gpt2", {**SIZES, "positions": 40}, span=SPAN)
BOTH = pytest.mark.parametrize("arch", [LLAMA2, GPT2], ids=lambda arch: arch.family)
IDS = torch.randint(0, 11, (2, 33), generator=torch.Generator().manual_seed(0))


def within_bounds(arch: Architecture) -> Read:
    """A model of random numbers, whose spans are between 0 and max."""
    read = trained(arch)
    return lambda kind, name, box: (
        read(kind, name, box).abs() if name.endswith(".span") and kind == "weight" else read(kind, name, box)
    )


@pytest.mark.parametrize(
    ("sizes", "policy"),
    [
        ({"heads": 8}, {"heads": "zero"}),
        ({"heads": 8}, {"heads": {"operator": "replicate", "born": True}}),
        ({"heads": 12}, {"heads": {"operator": "net2net", "mapping": "random"}}),
        ({"layers": 5}, {"layers": "identity"}),
        ({"layers": 4}, {"layers": {"operator": "stack", "init": "zero", "noise": 0.1}}),
        ({"hidden": 16}, {"hidden": "replicate"}),
        ({"hidden": 24, "heads": 8, "layers": 3, "ffn": 9, "vocab": 14}, {"hidden": "replicate", "vocab": "random"}),
    ],
    ids=str,
)
@BOTH
def test_exact(arch: Architecture, sizes: dict[str, int], policy: dict[str, Any]) -> None:
    if "kv_heads" in arch.sizes and "heads" in sizes:
        sizes = {**sizes, "kv_heads": sizes["heads"] // 2}
    plan = between(arch, arch.replace(sizes), policy, seed=1, init_std=0.3)
    assert plan.preserves
    assert plan.new.span == SPAN
    read = within_bounds(arch)
    new = reader(plan, read)
    before, after = (logits(r, a, IDS, torch.float64) for r, a in ((read, arch), (new, plan.new)))
    assert relative_error(after[..., :11], before) < 1e-12
    for name, tensor in plan.new.tensors().items():
        if name.endswith(".span"):  # noise is of matrices
            values = new("weight", name, Box.whole(tensor.shape)).tolist()
            assert {*values} <= {*_spans(arch, read), 0.0}


def _spans(arch: Architecture, read: Read) -> list[float]:
    whole = [read("weight", n, Box.whole(t.shape)) for n, t in arch.tensors().items() if n.endswith(".span")]
    return torch.cat(whole).tolist()


def objective(arch: Architecture, read: Read) -> Tensor:
    """The loss with the penalty of the spans."""
    spans = [read("weight", n, Box.whole(t.shape)).sum() for n, t in arch.tensors().items() if n.endswith(".span")]
    return loss(read, arch, IDS, torch.float64) + PENALTY / arch.sizes["heads"] * SPAN.max * torch.stack(spans).sum()


def gradients(arch: Architecture, read: Read) -> dict[str, Tensor]:
    weights = {name: read("weight", name, Box.whole(t.shape)).requires_grad_() for name, t in arch.tensors().items()}
    total = objective(arch, lambda kind, name, box: weights[name][box.slices()])
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))


@BOTH
def test_gradients_of_copies_are_shares(arch: Architecture) -> None:
    """Copied heads leave the loss as it is, its penalty too, and each copy has its share of the old gradient: so Adam's
    first moments grow by the same map."""
    sizes = {"heads": 8, "kv_heads": 4} if "kv_heads" in arch.sizes else {"heads": 8}
    policy = {"heads": {"operator": "replicate", "snr_db": None}}
    plan = between(arch, arch.replace(sizes), policy, seed=1, init_std=0.3)
    read = within_bounds(arch)
    old = gradients(arch, read)
    new = gradients(plan.new, reader(plan, read))
    assert objective(plan.new, reader(plan, read)) == pytest.approx(float(objective(arch, read)), rel=1e-12)
    carried = reader(plan, lambda kind, name, box: old[name][box.slices()])
    for name, grad in new.items():
        expected = carried("exp_avg", name, Box.whole(grad.shape))
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12, msg=name)


def test_a_model_says_that_it_has_them() -> None:
    assert Architecture.from_json(LLAMA2.to_json()) == LLAMA2 != replace(LLAMA2, span=None)
    assert "span" not in replace(LLAMA2, span=None).to_json()
    assert LLAMA2.tensor("model.layers.1.self_attn.span").shape == (4,)
    assert LLAMA2.replace({"layers": 3}).tensor("model.layers.2.self_attn.span")
    assert GPT2.tensor("transformer.h.1.attn.span").shape == (4,)


def test_refusals() -> None:
    with pytest.raises(GrowthError, match="spans of heads: at most 24, with a ramp of 6 cannot become none: keep"):
        between(LLAMA2, replace(LLAMA2, span=None), seed=0, init_std=0.1)
    with pytest.raises(GrowthError, match="spans of at most 0, with a ramp of 6: give two whole numbers above 0"):
        replace(LLAMA2, span=Span(0, 6))

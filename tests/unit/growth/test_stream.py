"""What is remembered of the residual stream, mapped at a growth: in double precision the grown model goes on from it as
the old one would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growth import Architecture, Plan, between
from growth.certificate import relative_error
from growth.evaluate.box_values import Read
from growth.stream import Stream
from pretrain import families
from pretrain.families.common.reference import Remembering
from tests.unit.growth.events import architectures, events
from tests.unit.growth.models import SMALL, STD, reader, tokens, trained

XL = Architecture(
    "transformer_xl",
    {"vocab": 9, "hidden": 6, "layers": 2, "heads": 2, "head_dim": 3, "ffn": 8, "sinusoid": 4},
    {"norm_eps": 1e-2},
)
REMEMBERING = [name for name, family in families.FAMILIES.items() if family.memory and not family.variant_of]


def error(plan: Plan, stream: Stream, read: Read) -> float:
    """Of the logits of text behind other text: that of the grown model, with a memory that was mapped."""
    assert plan.old is not None
    vocab = plan.old.sizes["vocab"]
    first, second = tokens(vocab, 2, 14).split(7, 1)

    def passed(arch: Any, read: Read, ids: torch.Tensor, memory: list[torch.Tensor]) -> Any:
        samples = Remembering({"inputs": ids}, memory)
        words = families.of(arch.family).reference(read, arch, samples, torch.float64)["words"]
        return words[..., :vocab], samples.inputs

    _, memory = passed(plan.old, read, first, [])
    expected, _ = passed(plan.old, read, second, memory)
    mapped = [stream.widened(memory[block]) for block in stream.blocks]
    found, _ = passed(plan.new, reader(plan, read), second, mapped)
    return relative_error(found, expected)


@given(st.sampled_from(REMEMBERING).flatmap(architectures).flatmap(lambda old: events(old=old)))
@settings(max_examples=50)
def test_mapped_memories_preserve_the_function(plan: Plan) -> None:
    assert plan.old is not None
    stream = Stream.of(plan)
    if stream is not None:
        assert error(plan, stream, trained(plan.old)) < 1e-10


@pytest.mark.parametrize(
    ("sizes", "policy"),
    [
        ({"hidden": 10}, {"hidden": "zero"}),
        ({"hidden": 12}, {"hidden": "replicate"}),
        ({"layers": 4}, {"layers": {"operator": "insert", "at": [{"index": 0, "init": "zero"}, {"index": 2}]}}),
        ({"layers": 4, "hidden": 9, "ffn": 12, "heads": 4, "kv_heads": 2}, {"layers": "identity", "hidden": "zero"}),
    ],
)
def test_what_is_mapped(sizes: dict[str, int], policy: dict[str, Any]) -> None:
    """Zero and replicated width, and layers that are the identity."""
    mapped_exactly(SMALL, sizes, policy)


def mapped_exactly(arch: Architecture, sizes: dict[str, int], policy: dict[str, Any]) -> None:
    plan = between(arch, arch.replace(sizes), policy, seed=1, init_std=STD)
    stream = Stream.of(plan)
    assert stream is not None
    assert error(plan, stream, trained(arch)) < 1e-10


@pytest.mark.parametrize("keep_eps", [False, True])
def test_zero_width_under_a_layer_norm(keep_eps: bool) -> None:
    """New channels get the mean of the old ones from all that writes, and so do states of the stream."""
    sizes = {"hidden": 10, "layers": 4, "heads": 4, "head_dim": 5, "ffn": 12}
    mapped_exactly(XL, sizes, {"hidden": {"operator": "zero", "keep_eps": keep_eps}})


@pytest.mark.parametrize(
    ("sizes", "policy"),
    [({"hidden": 10}, {"hidden": "net2net"}), ({"layers": 4}, {"layers": {"operator": "stack", "init": "copy"}})],
)
def test_what_is_not(sizes: dict[str, int], policy: dict[str, Any]) -> None:
    """A stream that the grown model would have made otherwise."""
    assert Stream.of(between(SMALL, SMALL.replace(sizes), policy, seed=1, init_std=STD)) is None

"""Old generations merged into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from growth import Architecture, Box, Generations, GrowthError, between
from pretrain.engine.adamw import AdamW
from pretrain.engine.generation_segments import segments
from pretrain.event.condense import condensed
from pretrain.schedule.curve import Birth, Curve, Pace
from pretrain.schedule.progress import Progress
from pretrain.state import State

SIZES = {"vocab": 9, "hidden": 8, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8}
SHAPES = [{"hidden": 12, "layers": 3}, {"hidden": 16, "ffn": 16}, {"hidden": 24, "layers": 5}]
PACE = Pace(0, 0.25, 10_000)


def grown_thrice(steps: list[int], paces: Sequence[Pace | None]) -> State:
    """Generations born at 0, 1000, 2000 and 3000 tokens; the run is at 4000."""
    arch = Architecture("llama2", SIZES)
    generations = Generations.first(arch)
    for shape in SHAPES:
        plan = between(arch, arch.replace(shape), {}, seed=0, init_std=0.02)
        generations, arch = plan.generations(generations), plan.new
    births = tuple(
        Birth(1000 * n, f"s{n}", step, pace=pace) for n, (step, pace) in enumerate(zip(steps, paces, strict=True))
    )
    return State(arch, generations, births, Progress(tokens=4000), None)


def trained(state: State) -> list[Tensor]:
    """Every tensor after some updates, each generation at its own rate."""
    found = []
    for name, tensor in state.arch.tensors().items():
        draw = torch.Generator().manual_seed(len(name))
        ids = state.generations.of(tensor, Box.whole(tensor.shape)).flatten()
        partition = torch.nn.Parameter(torch.randn(len(ids), generator=draw))
        adam = AdamW([partition], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        cut = list(segments(0, ids, tensor.shape[-1], 0, True, torch.device("cpu")))
        adam.describe(cut, [b.adam_step for b in state.births])
        for moment in adam.moments(partition):
            moment.copy_(torch.rand(len(ids), generator=draw))
        for n in range(10):
            tokens = 4000 + 10 * n
            adam.set_lr([b.pace.rate(Curve(1e-3), tokens) for b in state.births if b.pace])
            partition.grad = torch.randn(len(ids), generator=draw)
            adam.step()
        found.append(partition.detach())
    return found


def test_generations_that_are_merged() -> None:
    state = grown_thrice([2000, 1500, 1000, 500], [PACE] * 4)
    now = condensed(state, 0.95)
    assert now.generations.count == len(now.births) == 3
    assert now.births[1:] == state.births[2:]
    for tensor in state.arch.tensors().values():
        old, new = (s.generations.of(tensor, Box.whole(tensor.shape)).int() for s in (state, now))
        assert torch.equal(new, (old - 1).clamp(min=0))
    assert condensed(now, 0.95) == now
    with pytest.raises(GrowthError, match="5 generations cannot be merged: there are 4"):
        state.generations.merged(5)


def test_nothing_changes_where_rates_are_equal() -> None:
    """Bit for bit, whatever the newest two have."""
    paces = [PACE, replace(PACE, since=2000, position=PACE.at(2000)), replace(PACE, factor=0.5), PACE]
    now = condensed(grown_thrice([2000, 1500, 1000, 7], paces), 0.95)
    assert len(now.births) == 3
    rates = [b.pace.rate(Curve(1e-3), 4000) for b in now.births if b.pace]
    assert rates[0] == pytest.approx(PACE.rate(Curve(1e-3), 4000), rel=1e-12)
    same = grown_thrice([2000, 1500, 1000, 7], [PACE, PACE, paces[2], PACE])
    for one, other in zip(trained(same), trained(condensed(same, 0.95)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_means_are_weighted_with_tokens() -> None:
    paces = [
        replace(PACE, factor=1.0, weight_decay=0.1),
        replace(PACE, factor=0.3, weight_decay=0.45),
        *[replace(PACE, factor=2.0)] * 2,
    ]
    merged = condensed(grown_thrice([2000, 1500, 9, 5], paces), 0.95).births[0]
    assert merged.pace
    assert merged.pace.factor == pytest.approx((4000 * 1.0 + 3000 * 0.3) / 7000)
    assert merged.pace.weight_decay == pytest.approx((4000 * 0.1 + 3000 * 0.45) / 7000)
    assert (merged.adam_step, merged.birth_tokens, merged.stage) == (1500, 0, "s0")


@pytest.mark.parametrize(("beta2", "count"), [(0.95, 3), (0.999, 4)])
def test_what_has_not_settled_is_kept(beta2: float, count: int) -> None:
    """1500 updates are many at 0.95, and few at 0.999."""
    assert len(condensed(grown_thrice([9000, 1500, 1000, 500], [PACE] * 4), beta2).births) == count


def test_an_oldest_generation_that_was_never_updated_is_kept() -> None:
    """Imported and frozen until now: merged with it, settled moments would count their updates from the beginning."""
    state = grown_thrice([0, 5000, 5000, 500], [PACE] * 4)
    assert condensed(state, 0.95) == state

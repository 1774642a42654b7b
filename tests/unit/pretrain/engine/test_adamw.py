"""Updates of several generations against torch.optim.AdamW with a parameter group for each."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.engine import adamw_mixed
from pretrain.engine.adamw import AdamW
from pretrain.engine.generation_segments import Segment, segments
from pretrain.kernels import fused

CPU = torch.device("cpu")
HOW = dict(betas=(0.9, 0.95), eps=1e-8)


def flat(values: Tensor, weight_decay: float = 0.1) -> tuple[torch.nn.Parameter, AdamW]:
    partition = torch.nn.Parameter(values.clone())
    return partition, AdamW([partition], lr=1e-3, weight_decay=weight_decay, **HOW)


def update(adam: AdamW, partition: Tensor, gradient: Tensor) -> None:
    partition.grad = gradient.clone()
    adam.step()


def gradients(steps: int, numel: int, seed: int = 0) -> Tensor:
    """Noise whose size differs by orders of magnitude between elements, now and then exactly zero."""
    draw = torch.Generator().manual_seed(seed)
    size = 10 ** torch.empty(numel).uniform_(-7, 1, generator=draw)
    return torch.randn(steps, numel, generator=draw) * size * (torch.rand(steps, numel, generator=draw) > 0.1)


def close(found: Tensor, expected: Tensor, steps: int, lr: float) -> None:
    """To fp32 rounding: each step rounds the weight by half a unit in the last place, and its update."""
    assert bool(((found - expected).abs() <= steps * (2**-24 * expected.abs() + 2e-6 * lr)).all())


@pytest.mark.parametrize("cuts", [[0, 100_003], [0, 33_331, 70_001, 100_003]])
def test_one_generation_is_torch_bit_for_bit(cuts: list[int]) -> None:
    """100 steps, with the learning rate moving; a segment is what torch holds as a parameter."""
    start = torch.randn(cuts[-1], generator=torch.Generator().manual_seed(1))
    ours, adam = flat(start)
    adam.describe([Segment(a, b, True, (0,)) for a, b in pairwise(cuts)], [0])
    theirs = [torch.nn.Parameter(start[a:b].clone()) for a, b in pairwise(cuts)]
    reference = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.1, fused=True, **HOW)
    for n, gradient in enumerate(gradients(100, len(start))):
        lr = 1e-3 * (1 - n / 200)
        adam.set_lr(lr)
        reference.param_groups[0]["lr"] = lr
        update(adam, ours, gradient)
        for parameter, (a, b) in zip(theirs, pairwise(cuts), strict=True):
            parameter.grad = gradient[a:b].clone()
        reference.step()
    assert torch.equal(ours, torch.cat([p.detach() for p in theirs]))
    for mine, name in zip(adam.moments(ours), ("exp_avg", "exp_avg_sq"), strict=True):
        assert torch.equal(mine, torch.cat([reference.state[p][name] for p in theirs]))
    assert adam.steps == [100]


FACTORS = ((1.0, 1.0), (0.25, 1e4), (0.5, 0.5))  # of the learning rate, and of epsilon


class Reference:
    """Every block of one generation, with and without decay and with its factors (kinds: which of FACTORS), as a
    parameter, and a group, of its own."""

    def __init__(
        self, start: Tensor, ids: Tensor, decays: Tensor, weight_decays: list[float], kinds: Tensor | None = None
    ) -> None:
        kinds = torch.zeros_like(ids) if kinds is None else kinds
        every = product(range(len(weight_decays)), (True, False), range(len(FACTORS)))
        self.at = [(g, FACTORS[k][0], (ids == g) & (decays == d) & (kinds == k)) for g, d, k in every]
        self.parameters = [torch.nn.Parameter(start[mask].double()) for _, _, mask in self.at]
        every = product(range(len(weight_decays)), (True, False), range(len(FACTORS)))
        groups = [
            {"params": [p], "weight_decay": d * weight_decays[g] / FACTORS[k][0], "lr": 0.0}
            | {"eps": HOW["eps"] * FACTORS[k][1]}
            for (g, d, k), p in zip(every, self.parameters, strict=True)
        ]
        self.adam = torch.optim.AdamW(groups, betas=HOW["betas"])

    def step(self, gradient: Tensor, lrs: list[float]) -> None:
        for (g, factor, mask), p, group in zip(self.at, self.parameters, self.adam.param_groups, strict=True):
            p.grad, group["lr"] = gradient[mask].double(), factor * lrs[g]
        self.adam.step()

    def forget(self, generation: int) -> None:
        """A generation is born now: it has no moments, and no steps."""
        for (g, _, _), p in zip(self.at, self.parameters, strict=True):
            if g == generation:
                self.adam.state.pop(p, None)

    def value(self, name: str | None = None) -> Tensor:
        out = torch.zeros(len(self.at[0][2]), dtype=torch.float64)
        for (_, _, mask), p in zip(self.at, self.parameters, strict=True):
            out[mask] = self.adam.state[p][name] if name else p.detach()
        return out.float()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Tensor, list[tuple[int, int, int, bool]]]:
    """(ids, [(columns, into, length, decay)]): flat ranges of parameters one after the other."""
    parts, ids = [], []
    for _ in range(draw(st.integers(1, 4))):
        columns, rows, count = draw(st.integers(1, 40)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
        into = draw(st.integers(0, columns - 1))
        length = draw(st.integers(1, columns * rows - into))
        seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        if draw(st.booleans()):  # as growth makes them: the later of the row's and the column's
            matrix = torch.maximum(
                torch.randint(count, (rows, 1), generator=seed).sort(0).values,
                torch.randint(count, (1, columns), generator=seed),
            )
        else:
            matrix = torch.randint(count, (rows, columns), generator=seed)
        ids.append(matrix.flatten()[into : into + length].to(torch.uint8))
        parts.append((columns, into, length, draw(st.booleans())))
    return torch.cat(ids), parts


def described(ids: Tensor, parts: list[tuple[int, int, int, bool]]) -> tuple[list[Segment], Tensor, Tensor]:
    """Segments; and of each element, whether it decays and which of FACTORS it has: the parts have them by turns."""
    found, decays, kinds, start = [], torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids)), 0
    for number, (columns, into, length, decay) in enumerate(parts):
        kind = number % len(FACTORS)
        found += segments(start, ids[start : start + length], columns, into, decay, CPU, *FACTORS[kind])
        decays[start : start + length] = decay
        kinds[start : start + length] = kind
        start += length
    return found, decays, kinds


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_segments_say_what_every_element_is(layout: tuple[Tensor, list[tuple[int, int, int, bool]]]) -> None:
    ids, parts = layout
    found, decays, _ = described(ids, parts)
    assert [s.start for s in found] == [0, *(s.stop for s in found[:-1])]
    assert found[-1].stop == len(ids)
    for s in found:
        here = ids[s.start : s.stop]
        assert set(s.present) == set(here.tolist())
        assert bool((decays[s.start : s.stop] == s.decay).all())
        if s.rows:
            assert torch.equal(s.rows.patterns[s.rows.index].flatten(), here.long())
        else:
            assert len(s.present) == 1


@settings(max_examples=25, deadline=None)
@given(layouts(), st.integers(0, 2**31), st.sampled_from([None, 16, adamw_mixed._PART]))
def test_generations_are_parameter_groups(
    layout: tuple[Tensor, list[tuple[int, int, int, bool]]], seed: int, part: int | None
) -> None:
    """Own rates, own weight decay, own births and own factors, on any arrangement; the reference is double
    precision."""
    ids, parts = layout
    count = 4
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(len(ids), generator=draw)
    factors = [1.0, 0.0, 0.3, 2.0]
    weight_decays = [0.1, 0.0, 0.5, 0.1]
    with pytest.MonkeyPatch.context() as patch:
        if part:  # as on a device, in parts of so many elements
            patch.setattr(AdamW, "_on_device", lambda *_: True)
            patch.setattr(adamw_mixed, "_PART", part)
        found, decays, kinds = described(ids, parts)
        ours, adam = flat(start)
        adam.describe(found, [0] * count, weight_decays)
        reference = Reference(start, ids, decays, weight_decays, kinds)
        exp_avg, exp_avg_sq = adam.moments(ours)
        for n, gradient in enumerate(gradients(20, len(ids), seed)):
            if n in (5, 9):  # a generation is born: its moments are gone and its step is 0
                born = 2 if n == 5 else 3
                exp_avg[ids == born] = 0
                exp_avg_sq[ids == born] = 0
                adam.steps[born] = 0
                reference.forget(born)
            lrs = [1e-3 * f * (1 - n / 40) for f in factors]
            adam.set_lr(lrs)
            update(adam, ours, gradient)
            reference.step(gradient, lrs)
    assert adam.steps == [20, 20, 15, 11]
    close(ours.detach(), reference.value(), 20, 2e-3)
    torch.testing.assert_close(exp_avg_sq, reference.value("exp_avg_sq"), rtol=1e-5, atol=0)
    # Terms of exp_avg cancel: its rounding is that of the gradients.
    assert bool(((exp_avg - reference.value("exp_avg")).abs() <= 2e-6 * exp_avg_sq.sqrt()).all())
    frozen = ids == 1
    assert torch.equal(ours[frozen], start[frozen])


@pytest.mark.skipif(bool(fused.lacking("cpu")), reason=f"NOT TESTED: {fused.lacking('cpu')}")
def test_on_a_device_it_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many segments there are; compiled it is what it is on a CPU, and what is in no segment stays as it is."""
    compiled = fused.Kernel.__call__
    monkeypatch.setattr(fused.Kernel, "__call__", lambda *args: (called.append(1), compiled(*args)))
    monkeypatch.setattr(AdamW, "_on_device", lambda adam, _: adam.compile)
    ids = torch.randint(3, (60, 8), generator=torch.Generator().manual_seed(4)).flatten().to(torch.uint8)
    found = [s for n in range(20) for s in segments(24 * n, ids[24 * n : 24 * n + 24], 8, 0, n % 2 == 0, CPU)]
    resting = slice(found[-1].start, found[-1].stop)
    start = torch.randn(len(ids) + 5, generator=torch.Generator().manual_seed(5))
    called = []
    whole, kernels = flat(start), flat(start)
    for number, gradient in enumerate(gradients(3, len(start))):
        for partition, adam in (whole, kernels):
            if number == 0:
                adam.describe(found, [7, 3, 0], [0.1, 0.2, 0.3])
            elif number == 1:
                adam.segments = found[:-1]  # the last one is frozen
                before = partition.detach()[resting].clone()
            adam.set_lr([1e-3, 2e-3, 0.0])
            adam.compile = adam is kernels[1]
            update(adam, partition, gradient)
    assert len(called) == 3
    torch.testing.assert_close(kernels[0], whole[0], rtol=1e-6, atol=1e-9)
    for one, other in zip(kernels[1].moments(kernels[0]), whole[1].moments(whole[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-12)
    assert torch.equal(kernels[0].detach()[resting], before)
    assert torch.equal(kernels[0].detach()[-5:], start[-5:])


def test_alike_generations_end_as_one() -> None:
    """Two rates that have become equal take the fused kernel, and go on as the reference does."""
    ids = torch.tensor([0, 1, 1, 0] * 50, dtype=torch.uint8)
    start = torch.randn(len(ids), generator=torch.Generator().manual_seed(2))
    ours, adam = flat(start)
    adam.describe(list(segments(0, ids, 4, 0, True, CPU)), [0, 0], [0.1, 0.1])
    reference = Reference(start, ids, torch.ones(len(ids), dtype=torch.bool), [0.1, 0.1])
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        adamw_mixed = AdamW._update_mixed
        patch.setattr(AdamW, "_update_mixed", lambda *args: (taken.append(adam.steps[0]), adamw_mixed(*args)))
        for n, gradient in enumerate(gradients(600, len(ids))):
            if n == 5:
                for moment in adam.moments(ours):
                    moment[ids == 1] = 0
                adam.steps[1] = 0
                reference.forget(1)
            update(adam, ours, gradient)
            reference.step(gradient, [1e-3, 1e-3])
    assert taken[0] == 6
    assert 300 < taken[-1] < 400
    close(ours.detach(), reference.value(), 600, 1e-3)


@pytest.mark.parametrize("beta2", [0.95, 0.98, 0.999])
def test_the_first_updates_of_what_is_new_are_no_larger_than_a_fresh_optimizer_s(beta2: float) -> None:
    """Old parts are 2,000 steps in. With one step for all, updates of new parts would peak at 6.6 lr at 0.999."""
    betas = (0.9, beta2)
    columns, rows = 32, 64
    ids = torch.zeros(rows, columns, dtype=torch.uint8)
    ids[:, 20:] = 1
    ids[48:] = 1
    new = ids.flatten() == 1
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(rows * columns, generator=draw)
    ours = torch.nn.Parameter(start.clone())
    adam = AdamW([ours], lr=1e-3, betas=betas, eps=1e-8, weight_decay=0.0)
    adam.describe(list(segments(0, ids.flatten(), columns, 0, True, CPU)), [2000, 0])
    for moment in adam.moments(ours):
        moment[~new] = 1e-3
    fresh = torch.nn.Parameter(start[new].clone())
    reference = torch.optim.AdamW([fresh], lr=1e-3, betas=betas, eps=1e-8, weight_decay=0.0)
    largest = 0.0
    for _ in range(100):
        gradient = torch.randn(rows * columns, generator=draw) + 0.5
        before, fresh_before = ours.detach()[new].clone(), fresh.detach().clone()
        update(adam, ours, gradient)
        fresh.grad = gradient[new]
        reference.step()
        moved, allowed = (ours.detach()[new] - before).abs(), (fresh.detach() - fresh_before).abs()
        rounding = 4e-7 * before.abs()  # of the weight that the update is added to
        assert bool((moved <= 1.1 * allowed + rounding).all())
        largest = max(largest, float(moved.max()))
    assert 0 < largest < 1.5e-3


def test_a_rate_of_zero_where_the_oldest_generation_was_never_updated() -> None:
    """An imported model that is frozen has no Adam step; the schedule's last rate is zero."""
    start = torch.randn(8, generator=torch.Generator().manual_seed(4))
    ours, adam = flat(start)
    adam.describe([Segment(0, 8, True, (1,))], [0, 0], [0.1, 0.1])
    adam.resting = (0,)
    values = [start]
    for lr in (1e-3, 0.0):
        adam.set_lr([0.0, lr])
        update(adam, ours, torch.ones(8))
        values.append(ours.detach().clone())
    assert adam.steps == [0, 2]
    assert not torch.equal(values[1], start)
    assert torch.equal(values[2], values[1])


def test_another_number_of_rates_is_an_error() -> None:
    _, adam = flat(torch.zeros(4))
    adam.describe([Segment(0, 4, True, (0,))], [0])
    with pytest.raises(ValueError, match="2 learning rates for 1"):
        adam.set_lr([1e-3, 1e-3])
    with pytest.raises(ValueError, match="2 weight decays for 1"):
        adam.describe([Segment(0, 4, True, (0,))], [0], [0.1, 0.1])

"""The learning rate of each generation over a curriculum."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from growth import Generations
from pretrain import config
from pretrain.schedule.curve import Birth, Curve, Pace, Shape, paced, rates, sharing, weight_decays
from pretrain.schedule.progress import Progress
from pretrain.state import State

SHAPES = st.sampled_from(["cosine", "linear", "wsd", "constant"])


def rate(tokens: int, *, warmup: int = 100, end: int = 1100, **curve: Any) -> float:
    return Pace(0, 0.0, end).restarted(0, warmup).rate(Curve(**{"lr": 1e-3, "min_lr": 1e-4, **curve}), tokens)


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [
        ("cosine", 0, 0.0),
        ("cosine", 50, 5e-4),
        ("cosine", 100, 1e-3),
        ("cosine", 350, 8.681980515339464e-4),
        ("cosine", 600, 5.5e-4),
        ("cosine", 1100, 1e-4),
        ("cosine", 2000, 1e-4),
        ("linear", 50, 5e-4),
        ("linear", 350, 7.75e-4),
        ("linear", 1100, 1e-4),
        ("constant", 1, 1e-5),
        ("constant", 100, 1e-3),
        ("constant", 5000, 1e-3),
        ("wsd", 50, 5e-4),
        ("wsd", 100, 1e-3),
        ("wsd", 900, 1e-3),
        ("wsd", 1000, 5.5e-4),
        ("wsd", 1100, 1e-4),
        ("wsd", 3000, 1e-4),
    ],
)
def test_shapes(shape: Shape, tokens: int, expected: float) -> None:
    assert rate(tokens, shape=shape, decay=0.2) == pytest.approx(expected, rel=1e-12)


def test_warm_up_as_long_as_the_stage() -> None:
    assert rate(99, warmup=100, end=100) == pytest.approx(9.9e-4)
    assert rate(100, warmup=100, end=100) == 1e-3


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.floats(1e-6, 1.0), st.floats(0, 1), SHAPES, st.data())
def test_it_stays_between_its_ends_and_only_falls_after_warm_up(
    warmup: int, rest: int, lr: float, share: float, shape: Any, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, warmup + rest))
    second = data.draw(st.integers(first, warmup + rest))
    at = {n: rate(n, warmup=warmup, end=warmup + rest, lr=lr, min_lr=share * lr, shape=shape) for n in (first, second)}
    slack = 1 + 1e-12
    assert 0 <= at[first] <= lr * slack
    if first >= warmup:
        assert share * lr <= at[second] * slack
        assert at[second] <= at[first] * slack


MODEL = {"vocab": 100, "hidden": 32, "layers": 2, "heads": 2, "ffn": 64}


def curriculum(tmp_path: Path, *grow: dict[str, Any], train: dict[str, Any] | None = None) -> config.Curriculum:
    """Stages of 1000 tokens, cosine from 1e-3 to 0 unless train says otherwise; grow is of the later ones."""
    stages = [{"name": f"s{i}", "model": {**MODEL, "layers": 2 + i}, "grow": g} for i, g in enumerate(({}, *grow))]
    defaults = {"tokens": 1000, "seq_len": 10, "global_batch": 1, "lr": 1e-3, **(train or {})}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "data": {"corpus": "c"}, "train": defaults, "stages": stages}))
    return config.load(path)


def trained(c: config.Curriculum, lengths: list[int] | None = None) -> list[tuple[str, int, list[float]]]:
    """(stage, tokens, rates) every 10 tokens of the curriculum, as the loop sets them; each stage adds a generation."""
    births: tuple[Birth, ...] = ()
    found, start = [], 0
    for stage, length in zip(c.stages, lengths or [1000] * len(c.stages), strict=True):
        births = (*births, Birth(start, stage.name, 0))
        until = start + stage.train.tokens + sum(s.train.tokens for s in sharing(c, stage))
        births = paced(births, stage, True, start, until)
        for tokens in range(start + 10, start + length + 1, 10):
            found.append((stage.name, tokens, rates(births, stage, tokens)))
        births = tuple(Birth.from_json({**vars(b), "pace": vars(b.pace)}) for b in births)  # saved and loaded
        start += length
    return found


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd"])
def test_continue_is_one_curve_over_the_curriculum(tmp_path: Path, shape: Shape) -> None:
    """What has been learned keeps the rate it would have had; what is new joins it, after a warm-up of its own."""
    c = curriculum(
        tmp_path,
        {"schedule": "continue"},
        {"schedule": "continue"},
        train={"warmup_tokens": 100, "schedule": shape, "decay": 0.5},
    )
    for _, tokens, lrs in trained(c):
        expected = rate(tokens, warmup=100, end=3000, min_lr=0.0, shape=shape, decay=0.5)
        assert lrs[0] == pytest.approx(expected, rel=1e-9, abs=1e-15)
        for number, lr in enumerate(lrs[1:], 1):
            warm = min(1.0, (tokens - 1000 * number) / 100)
            assert lr == pytest.approx(expected * warm, rel=1e-9, abs=1e-15)


def test_a_stage_that_ends_early_leaves_no_jump(tmp_path: Path) -> None:
    """Its growth came sooner than planned: the rate goes on from where it was, and still reaches the end."""
    found = trained(curriculum(tmp_path, {}), [400, 1000])
    lrs = [lr[0] for _, _, lr in found]
    steps = [a - b for a, b in pairwise(lrs)]
    assert max(steps) < 3 * 1e-3 / 140
    assert min(steps) > 0
    assert lrs[-1] == pytest.approx(0.0, abs=1e-15)


def test_rewind(tmp_path: Path) -> None:
    found = {tokens: lrs for _, tokens, lrs in trained(curriculum(tmp_path, {"schedule": "rewind", "rewind": 0.6}))}
    assert found[1000] == [pytest.approx(rate(1000, warmup=0, end=2000, min_lr=0.0))]
    # 0.4 of the way that was behind it, then evenly to the end; old and new parts together.
    assert found[1010][0] == pytest.approx(Curve(1e-3).at(0.2 + 0.8 * 0.01))
    assert found[1010][0] == found[1010][1]
    assert found[2000] == pytest.approx([0.0, 0.0], abs=1e-15)


def test_rewarm_is_of_what_is_new_only(tmp_path: Path) -> None:
    c = curriculum(tmp_path, {"new_lr": 1.5})
    stage = replace(c.stages[1], train=replace(c.stages[1].train, warmup_tokens=200))
    c = replace(c, stages=(c.stages[0], stage))
    for name, tokens, lrs in trained(c):
        assert lrs[0] == pytest.approx(rate(tokens, warmup=0, end=2000, min_lr=0.0), rel=1e-9, abs=1e-15)
        if name == "s1":
            assert lrs[1] == pytest.approx(1.5 * rate(tokens - 1000, warmup=200, end=1000, min_lr=0.0), abs=1e-15)


def test_restart_ends_the_curve_before_it(tmp_path: Path) -> None:
    c = curriculum(tmp_path, {"schedule": "continue"}, {"schedule": "restart"}, train={"warmup_tokens": 100})
    for name, tokens, lrs in trained(c):
        if name == "s2":
            assert lrs == [pytest.approx(rate(tokens - 2000, warmup=100, end=1000, min_lr=0.0), abs=1e-15)] * 3
        else:
            assert lrs[0] == pytest.approx(rate(tokens, warmup=100, end=2000, min_lr=0.0), abs=1e-15)


def test_factors_and_freezing(tmp_path: Path) -> None:
    """old_lr holds for one stage, new_lr and new_weight_decay for what is born, for good."""
    c = curriculum(
        tmp_path, {"old_lr": 0.0, "new_lr": 0.5, "new_weight_decay": 0.01}, {}, train={"schedule": "constant"}
    )
    found = {tokens: lrs for _, tokens, lrs in trained(c)}
    assert found[500] == [1e-3]
    assert found[1500] == [0.0, 5e-4]
    assert found[2500] == [1e-3, 5e-4, 1e-3]
    births = paced([Birth(0, "s0", 9)], c.stages[0], True, 0, 1000)
    births = paced([*births, Birth(1000, "s1", 0)], c.stages[1], True, 1000, 2000)
    assert weight_decays(births, c.stages[2]) == [0.1, 0.01]


def test_what_grows_from_an_import_has_the_rates_of_what_is_new(tmp_path: Path) -> None:
    """Of an import no birth has a pace."""
    grow = {"old_lr": 0.5, "new_lr": 0.1, "new_weight_decay": 0.0}
    stage = curriculum(tmp_path, grow, train={"schedule": "constant"}).stages[1]
    births = paced([Birth(0, "s0", 0), Birth(0, "s1", 0)], stage, True, 0, 1000)
    assert rates(births, stage, 500) == pytest.approx([5e-4, 1e-4])
    assert weight_decays(births, stage) == [0.1, 0.0]


def test_layers_that_come_inside_a_stage_join_it(tmp_path: Path) -> None:
    stage = curriculum(tmp_path, train={"warmup_tokens": 100}).stages[0]
    births = paced([Birth(0, "s0", 0)], stage, True, 0, 1000)
    inside = paced([*births, Birth(500, "s0", 0)], stage, False, 500, 1000)
    for tokens, share in ((550, 0.5), (600, 1.0), (900, 1.0)):
        old, new = rates(inside, stage, tokens)
        assert new == pytest.approx(share * old)


def test_growth_inside_a_stage_and_a_resume_leave_old_paces_alone(tmp_path: Path) -> None:
    c = curriculum(tmp_path, {"schedule": "restart"}, train={"warmup_tokens": 100})
    stage = c.stages[1]
    births = paced([Birth(0, "s0", 0)], c.stages[0], True, 0, 1000)
    births = paced([*births, Birth(1000, "s1", 0)], stage, True, 1000, 2000)
    assert paced(births, stage, False, 1500, 2000) == births
    inside = paced([*births, Birth(1500, "s1", 0)], stage, False, 1500, 2000)
    assert inside[:2] == births
    old, _, new = rates(inside, stage, 1550)
    assert new == pytest.approx(old / 2)
    longer = rates(paced(births, stage, False, 1500, 4000), stage, 1600)
    assert longer[0] == pytest.approx(rate(600, warmup=100, end=3000, min_lr=0.0))


def test_generations_survive_a_checkpoint(tmp_path: Path) -> None:
    """What a manifest says of each: birth in tokens and steps, Adam's step, pace; exactly what was put in."""
    c = curriculum(tmp_path, {"schedule": "rewarm", "new_lr": 0.7, "new_weight_decay": 0.05})
    births = paced([Birth(0, "s0", 0)], c.stages[0], True, 0, 2000)
    births = paced([*births, Birth(1000, "s1", 0, 100)], c.stages[1], True, 1000, 2000)
    arch = c.stages[1].model.architecture()
    fields = State(arch, Generations(Generations.first(arch).births, 2), births, Progress(tokens=1230), None).fields(
        "s1", {}, [123, 23]
    )
    each = json.loads(json.dumps(fields.generations))["each"]
    assert [(b["birth_tokens"], b["birth_step"], b["adam_step"]) for b in each] == [(0, 0, 123), (1000, 100, 23)]
    stored = tuple(Birth.from_json(b) for b in each)
    assert [b.pace for b in stored] == [b.pace for b in births]
    assert rates(stored, c.stages[1], 1300) == rates(births, c.stages[1], 1300)

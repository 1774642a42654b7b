"""Steps that must not be made: skipped on every rank alike, and gone back from, through the training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
import yaml

from pretrain import config
from pretrain.checkpoint import find, is_done
from pretrain.checkpoint.manifest import plain
from pretrain.data.samples import Samples, part
from pretrain.engine.engine import Engine
from pretrain.engine.exchange import StepResult
from pretrain.families.text import open_feed
from pretrain.stage.metrics import read
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage, state

TP2_PP2 = {"tp": 2, "pp": 2}
DP2_PP2 = {"dp": 2, "pp": 2}


def poisoned(
    work: Callable[[], Any], rank: int, value: float, bad: Callable[[int, Samples], bool], crash_at: int = 0
) -> Any:
    """Does `work` while one rank's gradient of one parameter turns into `value`, by a hook in its backward pass, where
    `bad` says so of a step's number (in this process) and its samples. Before step `crash_at` all ranks crash.

    Steps are those with a veto, as the loop makes them; the certificate of a growth event has others."""
    train_step = Engine.train_step
    taken = iter(range(1, 1_000_000))

    def step(engine: Engine, samples: Samples, lr: Any, *veto: Any, **named: Any) -> StepResult:
        number = next(taken) if veto else 0
        if veto and number == crash_at:
            raise RuntimeError("as if it were killed")
        _, parameter = engine.parameters[-1]
        hit = veto and bad(number, samples) and dist.get_rank() == rank
        hook = parameter.register_hook(lambda grad: grad * value) if hit else None
        try:
            return train_step(engine, samples, lr, *veto, **named)
        finally:
            if hook:
                hook.remove()

    Engine.train_step = step  # type: ignore[method-assign]
    try:
        return work()
    finally:
        Engine.train_step = train_step  # type: ignore[method-assign]


def identity(samples: Samples) -> str:
    return str(samples["inputs"][0].tolist())


def _skips(how: dict[str, Any], precision: str, rank: int, value: float) -> Any:
    """Three steps, whose second is poisoned on one rank: the values after each, and what the steps say."""
    engine = ranks.engine_for(ranks.GQA, how, ranks.Numerics(precision))
    ranks.begin(engine)
    seen, results = [], []

    def steps() -> None:
        for batch in ranks.batches(ranks.GQA, 3):
            samples = part(batch, engine.dp_rank, engine.layout.dp)
            results.append(engine.train_step(samples, 1e-2, lambda *_: ""))
            weights = [parameter.detach().float().numpy().copy() for _, parameter in engine.parameters]
            seen.append(([values for *_, values in ranks.collected(engine)], weights, list(engine.adam.steps)))

    poisoned(steps, rank, value, lambda number, _: number == 2)
    return seen, [(r.loss, r.grad_norm, r.trouble) for r in results]


@pytest.mark.parametrize(("how", "precision"), [(TP2_PP2, "bf16"), (DP2_PP2, "fp32")], ids=str)
def test_a_step_without_a_finite_gradient_leaves_no_trace(how: dict[str, Any], precision: str) -> None:
    """One number of one rank is not one: no rank updates a weight, a moment or a step count, and the next step is good.

    The last rank of the pipeline, or the second one of the data-parallel ones, is the one that has it."""
    found = run(4, _skips, how, precision, 3, float("nan"))
    assert len({str(results) for _, results in found}) == 1, "every rank says the same"
    for seen, results in found:
        assert [bool(trouble) for *_, trouble in results] == [False, True, False]
        assert "not finite" in results[1][2]
        one, two, three = seen
        for before, after in zip([*one[0], *one[1]], [*two[0], *two[1]], strict=True):
            assert np.array_equal(before, after)
        assert [one[2], two[2], three[2]] == [[1], [1], [2]]
        assert not all(np.array_equal(x, y) for x, y in zip(one[0], three[0], strict=True))
        assert all(np.isfinite(x).all() for x in three[0])


def _judged(how: dict[str, Any]) -> Any:
    """A step that is refused, with a loss to which rank 1 adds 1."""
    engine = ranks.engine_for(ranks.GQA, how)
    ranks.begin(engine)
    before = ranks.collected(engine)
    asked: list[tuple[float, float]] = []

    def veto(loss: float, norm: float) -> str:
        asked.append((loss, norm))
        return "because"

    (batch,) = ranks.batches(ranks.GQA, 1)
    passes = engine._passes
    engine._passes = lambda *given: passes(*given) + dist.get_rank()  # type: ignore[method-assign]
    result = engine.train_step(part(batch, engine.dp_rank, engine.layout.dp), 1e-2, veto)
    same = all(np.array_equal(x[-1], y[-1]) for x, y in zip(before, ranks.collected(engine), strict=True))
    return asked, (result.loss, result.grad_norm, result.trouble), same, engine.adam.steps


def test_ranks_that_see_different_losses_decide_alike() -> None:
    """All go by one sum of what they have, to the last bit."""
    first, *others = run(2, _judged, {"dp": 2})
    assert others == [first]
    asked, (loss, norm, trouble), same, steps = first
    assert loss == pytest.approx(math.log(ranks.GQA.sizes["vocab"]) + 1, abs=0.3)
    assert asked == [(loss, norm)]
    assert (trouble, same, steps) == ("because", True, [0])


def _stage(path: str, drawn: list[str], stop_after: int | None = None, crash_at: int = 0) -> str:
    """A stage in which rank 1's gradients overflow wherever it draws one of these batches: bad text."""
    try:
        return poisoned(
            lambda: stage(path, "small", [], stop_after),
            1,
            inf,
            lambda _, samples: identity(samples) in drawn,
            crash_at,
        )
    except RuntimeError:
        return "crashed"


def _guard(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "guard.jsonl").read_text().splitlines()
    return [(each["event"], each["step"]) for each in map(json.loads, lines)]


def _same(one: Path, other: Path) -> None:
    expected = state(one / "checkpoints")
    for key, value in state(other / "checkpoints").items():
        assert np.array_equal(value, expected[key]), key
    records = [
        [{k: r[k] for k in r if "seconds" not in k and "per_second" not in k} for r in read(f / "metrics.jsonl")]
        for f in (one, other)
    ]
    assert [r for r in records[0] if len(r) > 3] == [r for r in records[1] if len(r) > 3]


RULES = {"patience": 3, "rollbacks": 2, "window": 4}
WAY = {"checkpoint": {"interval": 3}, "guard": RULES}


def test_skips_roll_back_and_leave_the_text_out(corpus: Path, tmp_path: Path) -> None:
    """The text of steps 5 to 7 has bad gradients: they are skipped, the stage goes back to the checkpoint of step 3 and
    on with the eighth batch. Stopped, crashed and left alone it ends with the same bits."""
    alone, cut = (curriculum(corpus, tmp_path / name, **WAY) for name in ("alone", "cut"))
    feed = open_feed(config.load(alone).stages[0])
    feed.seek(None)
    bad = [identity(feed.take(8, 0.0, 1, 2).samples) for _ in range(7)][4:]
    for _ in range(5):
        feed.take(8, 0.0, 1, 2)
    assert run(2, _stage, str(alone), bad) == ["", ""]
    folder = tmp_path / "alone/run/small"
    way = [("skipped", 5), ("skipped", 6), ("skipped", 7), ("rollback", 7)]
    assert _guard(folder) == way
    records = list(read(folder / "metrics.jsonl"))
    assert [(r["step"], r["rolled_back_from"]) for r in records if "rolled_back_from" in r] == [(3, 7)]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 9))
    manifest = find(folder / "checkpoints").manifest
    assert manifest is not None
    assert manifest.progress["stage_tokens"] == 8 * 32 * 8
    assert manifest.progress["health"]["rollbacks"] == 1
    assert manifest.cursor == plain(feed.cursor), "steps 4 to 8 go on after the text of the first seven"
    # A checkpoint on request, before the row or in it, does not change where the stage goes back to.
    for stop_after, last in ((2, 2), (4, 6)):
        assert run(2, _stage, str(cut), bad, stop_after) == ["", ""]
        found = find(tmp_path / "cut/run/small/checkpoints").manifest
        assert found is not None
        assert found.step == last
    assert run(2, _stage, str(cut), bad, None, 3) == ["crashed", "crashed"]
    assert _guard(tmp_path / "cut/run/small") == way
    assert run(2, _stage, str(cut), bad) == ["", ""]
    assert _guard(tmp_path / "cut/run/small") == way + way
    _same(folder, tmp_path / "cut/run/small")


def test_a_rollback_to_before_a_patch_makes_it_again(corpus: Path, tmp_path: Path) -> None:
    """The text of steps 5 and 6 is bad, and the checkpoint to go back to is that of step 4, from which the stage grows:
    that must not bring back where it read, and how often it went back."""
    small = yaml.safe_load(curriculum(corpus, tmp_path / "x").read_text())
    one = {**small["stages"][0], "patches": [{"at": 0.4, "index": 1}]}
    train = {**small["train"], "tokens": 10 * 32 * 8}
    rules = {"patience": 2, "rollbacks": 2, "window": 4}
    path = curriculum(corpus, tmp_path, train=train, checkpoint={"interval": 100}, guard=rules, stages=[one])
    feed = open_feed(config.load(path).stages[0])
    feed.seek(None)
    bad = [identity(feed.take(8, 0.0, 1, 2).samples) for _ in range(6)][4:]
    for _ in range(6):
        feed.take(8, 0.0, 1, 2)
    assert run(2, _stage, str(path), bad, None, 13) == ["", ""], "12 steps, and no more"
    folder = tmp_path / "run/small"
    assert _guard(folder) == [("skipped", 5), ("skipped", 6), ("rollback", 6)]
    manifest = find(folder / "checkpoints").manifest
    assert manifest is not None
    assert (manifest.step, manifest.architecture["sizes"]["layers"], len(manifest.events)) == (10, 3, 1)
    assert manifest.progress["health"]["rollbacks"] == 1
    assert manifest.cursor == plain(feed.cursor)
    assert is_done(folder)


def test_a_rollback_to_the_beginning_grows_again(corpus: Path, tmp_path: Path) -> None:
    """Bad text in the first steps of a grown stage under TP2: there is no checkpoint of its own to go back to."""
    path = curriculum(corpus, tmp_path, **WAY)
    assert run(2, stage, str(path), "small", []) == ["", ""]
    assert run(2, _grown_with_bad_steps, str(path)) == ["", ""]
    folder = tmp_path / "run/large"
    assert _guard(folder) == [("skipped", 1), ("skipped", 2), ("skipped", 3), ("rollback", 3)]
    assert [r["rolled_back_from"] for r in read(folder / "metrics.jsonl") if "rolled_back_from" in r] == [3]
    manifest = find(folder / "checkpoints").manifest
    assert manifest is not None
    assert manifest.step == 8
    assert [event["stage"] for event in manifest.events] == ["large"]
    assert manifest.parent is not None


def _grown_with_bad_steps(path: str) -> str:
    return poisoned(lambda: stage(path, "large", []), 0, inf, lambda number, _: number <= 3)


def test_a_stage_that_diverges_ends(corpus: Path, tmp_path: Path) -> None:
    """A learning rate that breaks the model in the first step: no text helps, so it goes back, and then gives up."""
    train = yaml.safe_load(curriculum(corpus, tmp_path / "x").read_text())["train"]
    path = curriculum(corpus, tmp_path, guard=RULES, train={**train, "lr": 1e25})
    first, second = run(2, stage, str(path), "small", [])
    assert first == second
    assert "after 2 rollbacks (guard.rollbacks): the training diverges" in first
    folder = tmp_path / "run/small"
    assert [event for event, _ in _guard(folder)].count("rollback") == 2
    assert not is_done(folder)

"""What the ranks tell each other in a step, and how often they do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

import pretrain.stage.run
from pretrain.checkpoint import Checkpointer
from pretrain.checkpoint.background import Write
from pretrain.data.samples import part
from pretrain.engine.engine import Engine
from pretrain.engine.exchange import StepResult
from pretrain.families.text import Feed
from pretrain.stage.metrics import Metrics, read
from pretrain.stage.run import Run
from pretrain.stage.validate import Validation
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

COLLECTIVES = ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "barrier")


def _wishes(rounds: list[dict[int, int]]) -> list[StepResult]:
    """A step for each round, in which some ranks have a wish."""
    engine = ranks.engine_for(ranks.GQA, {"pp": 2, "dp": 2})
    ranks.begin(engine)
    (batch,) = ranks.batches(ranks.GQA, 1)
    mine = part(batch, engine.dp_rank, engine.layout.dp)
    own = [wishes.get(dist.get_rank(), 0) for wishes in rounds]
    return [engine.train_step(mine, 1e-2, wish=partial(int, wish)) for wish in own]


def test_every_rank_has_the_largest_wish_of_the_step() -> None:
    """And the same loss, norm and terms, to the last bit."""
    rounds = [{}, {0: 1}, dict.fromkeys(range(4), 1), {0: 1, 3: 2}, {2: 2}, {1: 2, 2: 2}, {}]
    first, *others = run(4, _wishes, rounds)
    assert all(other == first for other in others)
    assert [result.wish for result in first] == [0, 1, 1, 2, 2, 2, 0]


def _collectives(precision: str) -> tuple[list[tuple[str, str, int]], int]:
    """(name, group, elements) of the engine's own collectives in a step, and the elements of the gradient's buffer."""
    engine = ranks.engine_for(ranks.GQA, {"tp": 2, "dp": 2, "sequence_parallel": True}, ranks.Numerics(precision))
    ranks.begin(engine)
    (batch,) = ranks.batches(ranks.GQA, 1)
    groups = {
        parallel_state.get_data_parallel_group(): "data",
        parallel_state.get_tensor_model_parallel_group(): "tensor",
        None: "world",
    }
    seen: list[tuple[str, str, int]] = []

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*given: Any, **named: Any) -> Any:
            size = max((x.numel() for x in given if isinstance(x, Tensor)), default=0)
            seen.append((name, groups[named.get("group")], size))
            return original(*given, **named)

        return collective

    run_model = engine.passes.run

    def inside(*given: Any, **named: Any) -> Any:
        before = len(seen)
        found = run_model(*given, **named)
        del seen[before:]  # Megatron's, of its model and its pipeline
        return found

    engine.passes.run = inside  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, noting(name, getattr(dist, name)))
        engine.train_step(part(batch, engine.dp_rank, engine.layout.dp), 1e-2)
    return seen, len(engine._gradients.partition) * engine.layout.dp


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_told_in_one_collective_and_its_gradient_is_not_all_reduced(precision: str) -> None:
    for seen, gradient in run(4, _collectives, precision):
        counts, norms, *rest = seen
        assert counts == ("all_reduce", "data", 1)
        assert norms[:2] == ("all_reduce", "tensor")
        assert norms[2] < 0.05 * gradient
        assert rest == [("reduce_scatter_tensor", "data", gradient), ("all_reduce", "world", 3)]


def _writing(rounds: list[set[int]]) -> list[StepResult]:
    """A step for each round, in which some ranks write a checkpoint; all of them wish to stop in every other one."""
    engine = ranks.engine_for(ranks.GQA, {"dp": 3})
    ranks.begin(engine)
    (batch,) = ranks.batches(ranks.GQA, 1)
    mine = part(batch, engine.dp_rank, engine.layout.dp)
    own = [dist.get_rank() in writers for writers in rounds]
    return [
        engine.train_step(mine, 1e-2, wish=partial(int, 2 * (n % 2)), writing=partial(bool, writes))
        for n, writes in enumerate(own)
    ]


def test_every_rank_knows_how_many_still_write() -> None:
    rounds = [set(), {0}, {0, 1, 2}, {0, 1, 2}, {2}]
    first, *others = run(3, _writing, rounds)
    assert all(other == first for other in others)
    assert [(result.writing, result.wish) for result in first] == [(0, 0), (1, 2), (3, 0), (3, 2), (1, 0)]


def _pending(path: str) -> list[tuple[str, bool, int]]:
    """(part of a turn, whether a save was pending before it, collectives in it), of every turn of a stage whose
    checkpoints take some steps to write on the last rank; without turns that save."""
    seen: list[tuple[str, bool, int]] = []
    made = 0
    done = Write.done.fget
    assert done is not None
    asked = 0

    def slowly(write: Write) -> bool:
        nonlocal asked
        asked += 1
        return bool(asked % 3 == 0 and done(write)) if dist.get_rank() else bool(done(write))

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*given: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            return original(*given, **named)

        return collective

    def noting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def work(run: Run, *given: Any, **named: Any) -> Any:
            pending, before = run.checkpointer._pending, made
            found = original(run, *given, **named)
            if run.checkpointer._pending is pending:
                seen.append((name, pending is not None, made - before))
            return found

        return work

    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(dist, name, counting(getattr(dist, name)))
        patch.setattr(Write, "done", property(slowly))
        for name in ("step", "save_if_due"):
            patch.setattr(Run, name, noting(name, getattr(Run, name)))
        assert stage(path, "small", []) == ""
    return seen


def test_a_save_in_the_background_adds_nothing_to_a_step(corpus: Path, tmp_path: Path) -> None:
    for seen in run(2, _pending, str(curriculum(corpus, tmp_path))):
        assert {pending for _, pending, _ in seen} == {False, True}
        assert {made for name, _, made in seen if name == "save_if_due"} == {0}
        assert len({made for name, _, made in seen if name == "step"}) == 1


class _Clock:
    """A monotonic clock that goes on only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def taking(self, seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def longer(*given: Any, **named: Any) -> Any:
            self.now += seconds
            return work(*given, **named)

        return longer


def _timed(path: str) -> None:
    clock = _Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.stage.run, "time", clock)
        for owner, name, seconds in (
            (Feed, "take", 1.0),
            (Engine, "train_step", 10.0),
            (Metrics, "step", 0.5),
            (Validation, "__call__", 1000.0),
            (Checkpointer, "save", 1e5),
        ):
            patch.setattr(owner, name, clock.taking(seconds, getattr(owner, name)))
        assert stage(path, "small", ["--parallel.dp", "1"]) == ""


def test_seconds_are_of_whole_turns_without_validations_and_checkpoints(corpus: Path, tmp_path: Path) -> None:
    """What comes between two steps is in the time of the second one."""
    path = curriculum(corpus, tmp_path)
    run(1, _timed, str(path))
    records = [r for r in read(tmp_path / "run/small/metrics.jsonl") if "loss" in r]
    assert [r["seconds"] for r in records] == [11 + 11.5 * step for step in range(8)]
    assert [r["tokens_per_second"] for r in records] == pytest.approx([256 / 11, *[256 / 11.5] * 7])

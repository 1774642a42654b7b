"""A bit that flips in one rank's gradient: found where a step is computed twice, named, and never in a weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint import is_done
from pretrain.data.samples import part
from pretrain.engine.engine import Engine
from pretrain.guard.recheck import UNFIT
from tests.distributed import ranks
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage

HOSTS = ["good", "bad"]


@contextmanager
def flipped(rank: int, passes: Collection[int]) -> Iterator[None]:
    """On one rank, the lowest bit of one number of the gradient flips after these forward and backward passes, counted
    from 1 in this process."""
    real: Callable[..., Tensor] = Engine._passes
    taken = iter(range(1, 1_000_000))

    def once(engine: Engine, *given: Any) -> Tensor:
        terms = real(engine, *given)
        if next(taken) in passes and dist.get_rank() == rank:
            _, parameter = engine.parameters[-1]
            engine.gradient(parameter).view(torch.int32).flatten()[:1].bitwise_xor_(1)
        return terms

    Engine._passes = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine._passes = real  # type: ignore[method-assign]


def _rechecked(how: dict[str, Any], precision: str, rank: int | None, recheck: bool) -> Any:
    """Three steps, the second with a flip on one rank: each step's unlike ranks and trouble, and the weights after."""
    engine = ranks.engine_for(ranks.GQA, how, ranks.Numerics(precision))
    ranks.begin(engine)
    seen = []
    with flipped(-1 if rank is None else rank, {4}):  # each step has two passes
        for batch in ranks.batches(ranks.GQA, 3):
            samples = part(batch, engine.dp_rank, engine.layout.dp)
            result = engine.train_step(samples, 1e-2, recheck=recheck)
            weights = [values for *_, values in ranks.collected(engine)]
            seen.append((tuple(each.rank for each in result.unlike), result.trouble, weights))
    return seen


@pytest.mark.parametrize(
    ("how", "precision", "rank"),
    [({"dp": 2}, "fp32", 1), ({"tp": 2, "pp": 2}, "bf16", 2), ({"tp": 2, "sequence_parallel": True}, "fp32", 0)],
    ids=str,
)
def test_a_flipped_bit_is_found_and_named(how: dict[str, Any], precision: str, rank: int) -> None:
    world = how.get("dp", 1) * how.get("tp", 1) * how.get("pp", 1)
    for first, second, third in run(world, _rechecked, how, precision, rank, True):
        assert first[:2] == third[:2] == ((), "")
        assert second[0] == (rank,)
        assert f"rank {rank} on " in second[1]
        assert all(map(np.array_equal, first[2], second[2]))  # the step was not made
        assert not all(map(np.array_equal, second[2], third[2]))


def test_computing_twice_changes_nothing() -> None:
    twice, once = (run(2, _rechecked, {"dp": 2}, "fp32", None, recheck) for recheck in (True, False))
    for a, b in zip(twice, once, strict=True):
        assert all(map(np.array_equal, a[-1][2], b[-1][2]))


def _stage(path: str, passes: Collection[int]) -> str:
    """A stage of two hosts of a rank each, the second of which flips bits."""
    with pytest.MonkeyPatch.context() as patched, flipped(1, passes):
        patched.setenv("SLURMD_NODENAME", HOSTS[dist.get_rank()])
        return stage(path, "small", [])


def test_a_host_that_is_wrong_twice_is_left(corpus: Path, tmp_path: Path) -> None:
    """The stage saves and leaves, says which host it was, and goes on when it is started again."""
    path = curriculum(corpus, tmp_path, guard={"recheck": 2})
    folder = tmp_path / "run/small"
    # Of each two steps the first has one pass and the second two: 1, 2 3, 4, 5 6, ...
    assert run(2, _stage, str(path), {3, 6}) == ["", ""]
    assert not is_done(folder)
    assert (folder / UNFIT).read_text() == "bad\n"
    events = [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("skipped", 2), ("skipped", 4)]
    assert all("rank 1 on bad" in event["why"] for event in events)
    assert run(2, _stage, str(path), set()) == ["", ""]
    assert is_done(folder)

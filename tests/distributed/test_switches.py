"""A user's STOP and SAVE, through the training loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from pathlib import Path

import numpy as np
import torch.distributed as dist

from pretrain import config
from pretrain.checkpoint.find import steps
from pretrain.stage.train import train
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, losses, stage, state


def _stage_with_switches(path: str, switches: dict[int, list[str]]) -> list[tuple[list[str], list[str]]]:
    """One rank of the first stage; before it looks after a step, rank 0's files of `switches` are made.

    After each step: the checkpoints and the files in the run folder, as this rank sees them then.
    """
    curriculum = config.load(path)
    folder = curriculum.folder / "small"
    seen: list[tuple[list[str], list[str]]] = []

    def look() -> Iterator[bool]:
        for step in range(1, 100):
            seen.append(([p.name for p in steps(folder / "checkpoints")], _present(folder)))
            for name in switches.get(step, ()):
                (folder / name).touch()
            yield False

    looks = look()
    finished = train(curriculum, curriculum.stages[0], lambda: next(looks))
    dist.barrier()  # rank 0 may still be at its files
    seen.append(([p.name for p in steps(folder / "checkpoints")], _present(folder)))
    assert finished == (len(seen) == 9)
    return seen


def _warnings(path: str) -> list[str]:
    """What a stage that runs to its end says of its switches."""
    handler = BufferingHandler(1000)
    logging.getLogger("pretrain.guard.switches").addHandler(handler)
    assert stage(path, "small", []) == ""
    return [record.getMessage() for record in handler.buffer]


def _present(folder: Path) -> list[str]:
    return [name for name in ("SAVE", "STOP", "STOPPED") if (folder / name).exists()]


def test_save_and_stop(corpus: Path, tmp_path: Path) -> None:
    alone, switched = (curriculum(corpus, tmp_path / name, checkpoint={"interval": 100}) for name in ("alone", "own"))
    assert run(2, stage, str(alone), "small", []) == ["", ""]
    folder = tmp_path / "own/run/small"
    for seen in run(2, _stage_with_switches, str(switched), {2: ["SAVE"], 4: ["SAVE", "STOP"]}):
        assert len(seen) == 5, "all ranks leave after the same step"
        assert seen[2] == (["step-00000002"], []), "saved and gone on"
        assert seen[4] == (["step-00000004", "step-00000002"], ["STOPPED"])
    (folder / "STOP").touch()
    (folder / "SAVE").touch()
    assert len(run(2, _stage_with_switches, str(switched), {3: ["STOP"]})[0]) == 4, "no switch of before stops it"
    (folder / "STOP").touch()
    (said, _) = run(2, _warnings, str(switched))
    assert any("STOP was there before this start: removed" in line for line in said)
    assert _present(folder) == []
    expected = state(tmp_path / "alone/run/small/checkpoints")
    for key, value in state(folder / "checkpoints").items():
        assert np.array_equal(value, expected[key]), key
    assert losses(tmp_path / "alone/run/small") == losses(folder)

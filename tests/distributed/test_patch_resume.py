"""A stage with a patch that is resumed around it, from damaged checkpoints too; and when a patch is due."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch.distributed as dist

import pretrain.checkpoint.find
import pretrain.stage.run
from pretrain.checkpoint import CorruptCheckpoint, Reader, is_done
from pretrain.config import Patch
from pretrain.stage.run import Run
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, losses, stage, state

STEPS, PATCH = 8, 4
PP2 = ["--parallel.pp", "2"]


def one_stage(corpus: Path, output: Path, patches: list[dict[str, Any]], **train: Any) -> Path:
    """One layer and its patches; validated at the ends only, and all checkpoints are kept."""
    rules = {"seq_len": 32, "global_batch": 8, "micro_batch": 2, "lr": 3e-3, "precision": "fp32", "eval_interval": 100}
    model = {"vocab": 350, "hidden": 32, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 64, "head_dim": 8}
    return curriculum(
        corpus,
        output,
        train={**rules, "eval_bytes": 4096, **(train or {"tokens": STEPS * 256})},
        checkpoint={"interval": 2, "keep": 9},
        stages=[{"name": "small", "model": model, "patches": patches}],
    )


def patched_stage(corpus: Path, output: Path) -> Path:
    return one_stage(corpus, output, [{"at": PATCH / STEPS, "index": 1}])


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run under PP2 with a patch that was left alone, with its checkpoints of every other step."""
    output = tmp_path_factory.mktemp("alone")
    assert run(2, stage, str(patched_stage(corpus, output)), "small", PP2) == ["", ""]
    return output


def stopped(corpus: Path, alone: Path, output: Path, step: int) -> tuple[Path, Path]:
    """The same run as it was after a step: its curriculum, and its checkpoints."""
    shutil.copytree(alone, output)
    folder = output / "run/small"
    (folder / "DONE").unlink()
    shutil.rmtree(folder / "events")
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(folder / f"checkpoints/step-{later:08}", ignore_errors=True)
    return patched_stage(corpus, output), folder / "checkpoints"


def same_end(alone: Path, output: Path) -> None:
    """Both have ended with the same bits, the same losses and the same certificate."""
    one, other = (folder / "run/small" for folder in (alone, output))
    assert is_done(other)
    expected, found = state(one / "checkpoints"), state(other / "checkpoints")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert np.array_equal(value, found[key]), key
    assert losses(one) == losses(other)
    events = [json.loads((each / f"events/step-{PATCH:08}.json").read_text()) for each in (one, other)]
    assert events[0]["certificate"] == events[1]["certificate"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_certificate_is_the_same_after_a_resume_at_its_patch(corpus: Path, alone: Path, tmp_path: Path) -> None:
    path, _ = stopped(corpus, alone, tmp_path / "cut", PATCH)
    assert run(2, stage, str(path), "small", PP2) == ["", ""]
    same_end(alone, tmp_path / "cut")


def _resume(path: str, unopened: str, mended: str) -> tuple[str, list[int]]:
    """The stage on a disk that fails now and then: the last rank alone cannot open a checkpoint the first time, and the
    damage of a file is gone when the patch is made. Returns the steps of its patches, too."""
    made: list[int] = []
    grow, failing = pretrain.stage.run.grow, [unopened] * (dist.get_rank() == dist.get_world_size() - 1)

    class Failing(Reader):
        def __init__(self, path: Path) -> None:
            if path.name in failing:
                failing.clear()
                raise CorruptCheckpoint(f"{path}: cannot be opened here")
            super().__init__(path)

    def mend(*given: Any) -> Any:
        made.append(given[0].source.step)
        if mended and dist.get_rank() == 0:
            flip(Path(mended))
        dist.barrier()
        return grow(*given)

    pretrain.checkpoint.find.Reader = Failing  # type: ignore[misc]
    pretrain.stage.run.grow = mend
    return stage(path, "small", PP2), made


@pytest.mark.parametrize(("unopened", "mended"), [("", True), ("step-00000004", False)])
def test_a_damaged_checkpoint_after_a_patch(
    unopened: str, mended: bool, corpus: Path, alone: Path, tmp_path: Path
) -> None:
    """One byte of the last rank's part of step 6 is wrong: it goes on from step 4, before the patch, which grows from
    there even if step 6 can be read again by then. Or from step 2, where that rank cannot open step 4 either: the other
    one, which can, does not wait for it."""
    path, checkpoints = stopped(corpus, alone, tmp_path / "cut", 6)
    file = checkpoints / "step-00000006/weight-00001.safetensors"
    flip(file)
    assert run(2, _resume, str(path), unopened, str(file) if mended else "") == [("", [PATCH])] * 2
    assert bool(list(checkpoints.glob(".step-00000006.corrupt-*"))) != mended
    same_end(alone, tmp_path / "cut")


def test_a_patch_is_due_at_the_step_that_has_its_share() -> None:
    """7/25 of 25 steps is 7 steps, though the product of the floats lies above; none is due before the first step."""

    def is_due(at: float, steps: int, done: int) -> bool:
        train, model = SimpleNamespace(tokens=steps * 256), SimpleNamespace(depth=1)
        given = SimpleNamespace(patches=(Patch(at=at, index=1),), train=train, model=model)
        progress = SimpleNamespace(stage_tokens=done * 256)
        now = SimpleNamespace(arch=SimpleNamespace(depth=1), progress=progress)
        return Run.patch_is_due(cast(Run, SimpleNamespace(stage=given, state=now)))

    for steps in range(2, 60):
        for step in range(1, steps):
            assert is_due(step / steps, steps, step), (step, steps)
            assert not is_due(step / steps, steps, step - 1), (step, steps)
    assert not is_due(1e-9, 25, 0)
    assert is_due(1e-9, 25, 1)


def _warnings(path: str) -> list[str]:
    """What a stage says about its layers."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pretrain.stage.run").addHandler(handler)
    assert stage(path, "small", []) == ""
    return said


def test_patches_that_no_step_makes_are_missed_aloud(corpus: Path, tmp_path: Path) -> None:
    """With epochs it is known only at the end that the second of them came too late."""
    patches = [{"at": 0.1, "index": 1}, {"at": 0.99, "index": 2}]
    path = one_stage(corpus, tmp_path, patches, epochs=0.01)
    (said,) = run(1, _warnings, str(path))[0]
    assert "small ends with 2 layers, and its patches make 3" in said

"""Runs of Megatron-core that go on here, and ours that go on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.checkpoint import find, is_done
from pretrain.checkpoint.find import step_folder
from pretrain.stacks.imports import import_stack
from tests.distributed import megatron_lm, ranks
from tests.distributed.harness import run

ARCH = ranks.GQA.replace({"vocab": 102, "layers": 2})
BEFORE, AFTER = 3, 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A run of Megatron-core under TP2, saved after some steps; the losses of the next ones."""
    root = tmp_path_factory.mktemp("megatron")
    losses, other = run(2, megatron_lm.trained_and_saved, ARCH, 2, BEFORE, AFTER, str(root))
    assert losses == other
    return root, losses


def test_a_run_goes_on_here_as_it_does_there(saved: tuple[Path, list[float]], tmp_path: Path) -> None:
    """The next losses are Megatron's own, under another layout: weights, moments and the step came in."""
    root, losses = saved
    imported = import_stack(root / "torch_dist", tmp_path / "run" / "base")
    assert (imported.step, imported.iteration, imported.moments) == (BEFORE, BEFORE, True)
    assert imported.optimizer["betas"] == megatron_lm.BETAS
    assert is_done(tmp_path / "run" / "base")
    how: dict[str, Any] = {"tp": 2}
    ours = run(2, megatron_lm.imported_and_trained, ARCH, how, str(imported.checkpoint), BEFORE, AFTER)
    np.testing.assert_allclose(ours[0], losses, rtol=0, atol=1e-5)
    manifest = find(tmp_path / "run" / "base" / "checkpoints").manifest
    assert manifest is not None
    assert manifest.events[0]["imported"]["config"]["iteration"] == BEFORE
    assert imported.checkpoint == step_folder(tmp_path / "run" / "base" / "checkpoints", 0)

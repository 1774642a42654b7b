"""Which checkpoint is meant by a folder."""

from pathlib import Path

import pytest
import torch

from growth import Architecture, Generations
from pretrain.checkpoint import CorruptCheckpoint, mark_done, step_folder, write_checkpoint
from pretrain.checkpoint.locate import locate
from pretrain.errors import UserError
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State

SIZES = {"vocab": 4, "hidden": 4, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 4, "ffn": 4}
ARCH = Architecture("llama2", SIZES)


def save(stage: Path, step: int, tokens: int) -> Path:
    path = step_folder(stage / "checkpoints", step)
    state = State(ARCH, Generations.first(ARCH), (Birth(0, stage.name, 0),), Progress(step, tokens, tokens), None)
    fields = state.fields(stage.name, {}, [0])
    write_checkpoint(path, step, ["weight"], lambda kind, name, box: torch.ones(box.shape), fields, {})
    return path


def test_checkpoint_stage_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest that verifies; of a run, the last finished stage where that is asked for."""
    old, new = save(tmp_path / "z", 5, 50), save(tmp_path / "z", 10, 100)
    later = save(tmp_path / "a", 3, 130)  # the order is that of tokens, not of names
    mark_done(tmp_path / "z", {})
    assert locate(old) == old
    assert locate(tmp_path / "z") == locate(tmp_path / "z" / "checkpoints") == new
    assert locate(tmp_path) == later
    assert locate(tmp_path, finished=True) == new
    mark_done(tmp_path / "a", {})
    assert locate(tmp_path, finished=True) == later

    (new / "weight-00000.safetensors").unlink()
    assert locate(tmp_path / "z") == old
    assert f"skipped {new}" in capsys.readouterr().err
    with pytest.raises(CorruptCheckpoint, match=r"weight-00000\.safetensors"):
        locate(new)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder: name a checkpoint"):
        locate(tmp_path / "x")
    (tmp_path / "stage" / "checkpoints" / "step-00000001").mkdir(parents=True)
    for folder in (tmp_path / "stage", tmp_path):
        with pytest.raises(UserError, match="none of its checkpoints verifies"):
            locate(folder)

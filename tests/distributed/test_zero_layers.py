"""A model without layers, an embedding and a head: trains, is resumed, and grows into one with layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain import config
from pretrain.errors import UserError
from pretrain.report import history
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage, state

SIZES = {"vocab": 350, "hidden": 32, "heads": 4, "ffn": 64, "head_dim": 8}
STAGES = [
    {"name": "none", "model": {**SIZES, "layers": 0, "order": ""}, "parallel": {"tp": 1, "dp": 1}},
    {
        "name": "two",
        "model": {**SIZES, "layers": 2},
        "parallel": {"tp": 1, "dp": 1},
        "grow": {"recipe": "zero_layers"},
    },
]


def test_an_embedding_and_a_head(corpus: Path, tmp_path: Path) -> None:
    """Stopped and resumed it ends as without the stop, bit for bit; what grows out of it learns on."""
    paths = [curriculum(corpus, tmp_path / name, stages=STAGES) for name in ("straight", "stopped")]
    assert run(1, stage, str(paths[0]), "none", []) == [""]
    for stop in (4, None):
        assert run(1, stage, str(paths[1]), "none", [], stop) == [""]
    ends = [state(path.parent / "run" / "none" / "checkpoints") for path in paths]
    assert {name for _, name in ends[0]} == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert run(1, stage, str(paths[0]), "two", []) == [""]
    before, after = history.load(tmp_path / "straight" / "run")
    assert after.architecture.layers == 2
    assert after.series("validation_loss")[-1]["validation_loss"] < before.start["validation_loss"]


def test_nothing_is_split_over_pipeline_ranks(corpus: Path, tmp_path: Path) -> None:
    stages = [{**STAGES[0], "parallel": {"pp": 2}}]
    with pytest.raises(UserError, match="a model without layers has nothing to split"):
        config.load(curriculum(corpus, tmp_path, stages=stages))

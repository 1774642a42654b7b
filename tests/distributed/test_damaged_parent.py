"""A growth event begins with the newest checkpoint of its parent, and finds damage where only growing reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.distributed.harness import run
from tests.distributed.test_patch_resume import flip
from tests.distributed.test_stage import curriculum, stage, state


def test_damaged_moments_of_the_newest(corpus: Path, tmp_path: Path) -> None:
    """The event is measured and made of the one before, as if the newest had not been there."""
    path = curriculum(corpus, tmp_path / "absent", checkpoint={"interval": 3, "keep": 9})
    folder = tmp_path / "absent/run"
    assert run(2, stage, str(path), "small", []) == ["", ""]
    damaged = tmp_path / "damaged/run"
    shutil.copytree(folder, damaged)
    other = curriculum(corpus, tmp_path / "damaged", checkpoint={"interval": 3, "keep": 9})
    newest = sorted((damaged / "small/checkpoints").glob("step-*"))[-1]
    flip(next(newest.glob("exp_avg-*")))
    shutil.rmtree(folder / "small/checkpoints" / newest.name)
    for each in (path, other):
        assert run(2, stage, str(each), "large", []) == ["", ""]
    found, wanted = (state(where / "large/checkpoints") for where in (damaged, folder))
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    events = [json.loads(next((where / "large/events").iterdir()).read_text()) for where in (damaged, folder)]
    assert events[0]["certificate"] == events[1]["certificate"]

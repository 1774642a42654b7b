"""A stage whose machine is lost goes on, elsewhere, from its mirror."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain import config
from pretrain.checkpoint import is_done
from pretrain.cli import mirror
from pretrain.event import plan
from pretrain.stage.mirrored import bring_back, state_of
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, losses, stage, state


def test_it_is_bit_for_bit_the_one_that_was_left_alone(corpus: Path, tmp_path: Path) -> None:
    """And what it has trained so far is in its metrics; a later stage finds it there as well."""
    url = f"file://{tmp_path / 'bucket'}"
    alone = curriculum(corpus, tmp_path / "alone")
    path = curriculum(corpus, tmp_path / "mirrored", checkpoint={"interval": 3, "mirror": url})
    one, folder = ["--parallel.dp", "1"], tmp_path / "mirrored/run/small"
    assert run(1, stage, str(alone), "small", one) == [""]
    assert run(1, stage, str(path), "small", one, 4) == [""]
    assert mirror.main([str(folder)]) == 0
    folder.parent.rename(tmp_path / "lost")

    assert run(1, stage, str(path), "small", one) == [""]
    assert is_done(folder)
    assert losses(folder) == losses(tmp_path / "alone/run/small")
    expected = state(tmp_path / "alone/run/small/checkpoints")
    for key, value in state(folder / "checkpoints").items():
        assert np.array_equal(value, expected[key]), key
    known = state_of(folder)
    assert known == {"url": f"{url}/run/small", "sending": None, "newest": 8, "problem": None}
    folder.parent.rename(tmp_path / "lost again")

    loaded = config.load(path)
    bring_back(loaded, loaded.stage("large"))
    assert is_done(folder)
    plan.check(loaded, loaded.stage("large"), 2)

    # A stage that had ended before there was a mirror is sent when it is asked for again.
    late = curriculum(corpus, tmp_path / "alone", checkpoint={"interval": 3, "mirror": f"file://{tmp_path / 'late'}"})
    assert run(1, stage, str(late), "small", one) == [""]
    assert (known := state_of(tmp_path / "alone/run/small"))
    assert known["newest"] == 8


def test_a_stage_does_not_begin_anew_what_its_mirror_has(corpus: Path, tmp_path: Path) -> None:
    """Though what it has is damaged: that is for a person to look at."""
    taken = tmp_path / "bucket/run/small"
    (taken / "checkpoints/step-00000001").mkdir(parents=True)
    (taken / "checkpoints/step-00000001/manifest.json").write_text("{}")
    path = curriculum(corpus, tmp_path, checkpoint={"interval": 100, "mirror": f"file://{tmp_path / 'bucket'}"})
    assert "none of its checkpoints can be brought back" in run(1, stage, str(path), "small", ["--parallel.dp", "1"])[0]

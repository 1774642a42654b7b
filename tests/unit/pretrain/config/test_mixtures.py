"""The keys of mixtures: how a file is read, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import config
from pretrain.config import compare_for_resume
from pretrain.errors import UserError
from tests.unit.small import TEXT

A, B = {"corpus": "data/a", "weight": 1}, {"corpus": "data/b", "weight": 3}


def load(folder: Path, data: Any, *stages: Any) -> config.Curriculum:
    """The small curriculum with this at its top, and in its stages."""
    raw = yaml.safe_load(TEXT)
    raw["data"] = data
    for stage, own in zip(raw["stages"], stages, strict=False):
        stage["data"] = own
    path = folder / "mixed.yaml"
    path.write_text(yaml.safe_dump(raw))
    return config.load(path)


def folders(curriculum: config.Curriculum) -> list[tuple[str, ...]]:
    return [stage.data.folders for stage in curriculum.stages]


def test_each_stage_has_its_sources(tmp_path: Path) -> None:
    """Sources that begin later; a stage's own list, or corpus, in place of what is at the top."""
    later = {**B, "from_stage": "wide"}
    assert folders(load(tmp_path, {"corpora": [A, later]})) == [("data/a",), ("data/a", "data/b")]
    assert folders(load(tmp_path, {"corpora": [A]}, {}, {"corpora": [B]})) == [("data/a",), ("data/b",)]
    assert folders(load(tmp_path, {"corpus": "data/a"}, {}, {"corpora": [A, B]})) == [("data/a",), ("data/a", "data/b")]
    assert folders(load(tmp_path, {"corpora": [A, B]}, {"corpus": "data/b"})) == [("data/b",), ("data/a", "data/b")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"corpora": [A, {**B, "weight": -1}]}, r"corpora\[1\]\.weight: should be greater than or equal to 0, not -1"),
        ({"corpora": [A, {**B, "weight": float("inf")}]}, r"corpora\[1\]\.weight: should be a finite number, not inf"),
        ({"corpora": [A, {**B, "weight": float("nan")}]}, r"corpora\[1\]\.weight: should be .*, not nan"),
        ({"corpora": [{**A, "weight": 0}, {**B, "weight": 0}]}, r"data\.corpora: all of weight, tokens, epochs are 0"),
        ({"corpora": [A, B, {**A, "corpus": "data/./a/"}]}, r"corpora\[2\]\.corpus: .* is data\.corpora\[0\] too"),
        ({"corpora": [A, {**B, "tokens": 5}]}, r"corpora\[1\]: weight and tokens given; give one of weight, tokens"),
        ({"corpora": [A, {"corpus": "data/b"}]}, r"corpora\[1\]: nothing given; give one of weight, tokens and epochs"),
        ({"corpora": [A, {"corpus": "data/b", "tokens": 10**7}]}, "leaves nothing to share by weight"),
        ({"corpora": [A], "corpus": "data/b"}, r"data\.corpora: given beside data\.corpus 'data/b'"),
        ({}, r"data\.corpus: missing; give it, or data\.corpora"),
        ({"corpora": [{**A, "from_stage": "wide"}]}, r"stages\[0\]\.data\.corpus: missing"),
        ({"corpora": [{**A, "from_stage": "wid"}]}, r"corpora\[0\]\.from_stage: 'wid' is no stage, did you"),
        ({"corpora": [{**A, "wieght": 1}]}, r"corpora\[0\]\.wieght: unknown key, did you mean 'weight'"),
        ({"corpora": "data/a"}, r"data\.corpora: should be a valid tuple, not 'data/a'"),
    ],
)  # fmt: skip
def test_bad_mixtures(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, data)


def test_held_out_text_stays_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction: 0\.1 after 0\.01 in stage 'seed'"):
        load(tmp_path, {"corpora": [A, B]}, {}, {"validation_fraction": 0.1})


def test_what_a_resume_may_change(tmp_path: Path) -> None:
    """Where a corpus lies; not what its share is."""
    stage = load(tmp_path, {"corpora": [A, B]}).stages[0].to_dict()
    moved = load(tmp_path, {"corpora": [A, {**B, "corpus": "elsewhere"}]}).stages[0].to_dict()
    compare_for_resume(stage, moved)
    other = load(tmp_path, {"corpora": [A, {**B, "weight": 2}]}).stages[0].to_dict()
    with pytest.raises(UserError, match=r"data\.corpora\[1\]\.weight: 3\.0 in the checkpoint, 2\.0 now"):
        compare_for_resume(stage, other)

"""A stage whose corpus is at a URL, read by two ranks through one cache."""

from __future__ import annotations

import os
from pathlib import Path

from pretrain.checkpoint import find
from pretrain.data.corpus import remote
from tests.distributed.harness import run
from tests.distributed.test_stage import curriculum, stage


def test_it_trains_as_on_the_corpus_itself(corpus: Path, tmp_path: Path) -> None:
    """Bit for bit."""
    url = f"file://{tmp_path / 'bucket'}"
    remote.publish(corpus, url)
    weights = []
    for place, where in (("here", str(corpus)), ("there", url)):
        data = {"corpus": where, "validation_fraction": 0.05, "window": 16}
        path = curriculum(corpus, tmp_path / place, data=data)
        assert run(2, stage_with_cache, str(tmp_path / "cache"), str(path)) == ["", ""]
        newest = find(tmp_path / place / "run" / "small" / "checkpoints").path
        assert newest is not None
        weights.append([file.read_bytes() for file in sorted(newest.glob("*.safetensors"))])
    assert weights[0] == weights[1]
    assert list((tmp_path / "cache").rglob("tokens.there"))


def stage_with_cache(cache: str, path: str) -> str:
    os.environ[remote.CACHE] = cache
    return stage(path, "small", [])

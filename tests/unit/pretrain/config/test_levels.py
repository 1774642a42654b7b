"""Models of several levels: `model.levels`, and what does not go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from growth.family import Stream
from pretrain import config
from tests.unit.pretrain.config.test_config import message, write

MODEL: dict[str, Any] = {"vocab": 300, "hidden": 64, "heads": 4, "ffn": 128, "family": "convolution_attention"}


def given(**changes: Any) -> dict[str, Any]:
    return {"stages.1": None, "stages.0.model": dict(MODEL), "model.levels": [1, 1, 2, 1, 1], **changes}


def test_levels_are_blocks(tmp_path: Path) -> None:
    """Compressors and expanders are between the numbers."""
    (stage,) = config.load(write(tmp_path, given())).stages
    arch = stage.architecture()
    of = "layer compress_1 layer_1 compress_2 layer_2 layer_2 expand_2 layer_1 expand_1 layer"
    assert arch.kinds == tuple(of.split())
    assert (arch.unit, stage.model.depth, arch.sizes["positions"]) == (16, 10, 64)
    assert [arch.stream(block) for block in (0, 2, 5, 10)] == [Stream(), Stream(2, 4), Stream(4, 16), Stream()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"model.levels": []},
            "stages[0].model.levels: missing; give the blocks before, between and behind 1 to 3 com",
        ),
        ({"model.levels": [1, 1]}, "model.levels: [1, 1]; give the blocks"),
        ({"model.levels": [1] * 9}, "model.levels: [1, 1, 1, 1, 1, 1, 1, 1, 1]; give the blocks"),
        ({"stages.0.model.layers": 3}, "model.layers: 3, but model.levels says all blocks"),
        ({"stages.0.model.order": "sf"}, "model.order: sf, but model.levels says all blocks"),
        ({"stages.0.model.share": 2}, "model.share: 2, but the blocks of model.levels are not shared"),
        ({"stages.0.model.family": "llama2", "stages.0.model.layers": 2}, "model.levels: [1, 1, 2, 1, 1], but llama2"),
        (
            {"train.seq_len": 72},
            "train.seq_len: 72 is no multiple of 16: the longest unit of model.levels has 16 tokens",
        ),
        (
            {"train.seq_len": 48, "parallel": {"tp": 2, "sequence_parallel": True}},
            "train.seq_len: 48 is no multiple of 32: the longest unit of model.levels has 16 tokens on each of 2 ",
        ),
        ({"stages.0.model.hidden": 62, "parallel.tp": 4}, "parallel.tp: 4 does not divide model.hidden 62"),
        ({"train.layer_drop": {"p": 0.1}}, "train.layer_drop.p: 0.1, but no compressor or expander"),
        ({"model.span": {"max": 64}}, "model.span: convolution_attention has an attention of its own"),
        ({"data.reset_attention": True}, "data.reset_attention: true, but documents end inside units"),
        (
            {"parallel": {"pp": 2, "pipeline": [3, 2, 3, 2]}},
            "parallel.pipeline: 2 parts for each rank, but Megatron-core's",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in message(tmp_path, given(**changes))


def test_a_stage_keeps_the_compressors(tmp_path: Path) -> None:
    """What leads from level to level is never the identity; blocks may be added at every level."""

    def grown(levels: list[int]) -> dict[str, Any]:
        large = {**MODEL, "levels": levels}
        return {"stages.0.model": dict(MODEL), "model.levels": [1, 1, 2, 1, 1], "stages.1.model": large}

    assert len(config.load(write(tmp_path, grown([1, 2, 3, 1, 2]))).stages) == 2
    text = message(tmp_path, grown([1, 1, 1, 2, 1, 1, 1]))
    assert "expand_2, expand_1 cannot become compress_1, compress_2, compress_3, expand_3, expand_2, expand_1" in text

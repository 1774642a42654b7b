"""`format_1` is a checkpoint that Cambium wrote when the format had version 1: a model grown from one layer to two."""

from pathlib import Path

import torch

from growth import Box, Plan
from pretrain.checkpoint import Manifest, Reader, model_of, verify_all

OLD = Path(__file__).parent / "format_1"


def test_a_checkpoint_of_format_1_is_read() -> None:
    manifest = Manifest.load(OLD)
    assert manifest.format_version == 1
    assert manifest.hash == "fc771dce69bb9466c0549b9b3a0ed098"
    assert verify_all(OLD) == []
    arch = model_of(manifest, OLD)
    assert arch.blocks == (("layer", 0), ("layer", 1))
    plan = Plan.from_json(manifest.events[1]["plan"])
    assert plan.new == arch
    assert plan.operators == ("layers: stack",)
    reader = Reader(OLD)
    weights = [reader.read("weight", f"model.layers.{i}.mlp.up_proj.weight", Box((0, 0), (2, 2))) for i in range(2)]
    assert torch.equal(*weights)
    assert weights[0].abs().min() > 0

"""Transformer-XL in transformers, which has no class for it: an export goes with its code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from growth import Architecture
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from tests.unit.pretrain.hf.coded import exported, imports_as, modules, says_and_writes_as
from tests.unit.pretrain.hf.test_orders import comes_back

__all__ = ["modules"]

SIZES = {"vocab": 40, "hidden": 24, "layers": 3, "heads": 4, "head_dim": 5, "ffn": 40, "sinusoid": 14}
XL = Architecture("transformer_xl", SIZES, {"norm_eps": 1e-3, "softmax_scale": 0.3})  # as after growth of heads
ORDER = XL.replace({"layers": 4}, kinds=("attention", "attention", "mlp", "attention"))


@pytest.mark.parametrize("arch", [XL, ORDER], ids=["usual", "an order"])
@torch.no_grad()
def test_an_export_is_the_model(arch: Architecture, tmp_path: Path) -> None:
    folder, read = exported(arch, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    says_and_writes_as(loaded, arch, read)
    if arch.mixed:
        comes_back(folder, arch, read, tmp_path)
        return
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    imported = imports_as(folder, arch, read, tmp_path / "run/first")
    export(imported, tmp_path / "again", shard_bytes=8000)
    for file in ("config.json", "modeling_transformer_xl.py", "model.safetensors.index.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_sinusoid": 15}))
    with pytest.raises(UserError, match="sinusoid = 15 is odd"):
        import_model(folder, tmp_path / "run/second")

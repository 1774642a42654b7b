"""Transformer-XL in transformers, which has no class for it: an export goes with its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture, Box
from pretrain import families
from pretrain.checkpoint import Reader
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from tests.unit.pretrain.hf.test_orders import IDS, close, comes_back, exported, modules

__all__ = ["modules"]

SIZES = {"vocab": 40, "hidden": 24, "layers": 3, "heads": 4, "head_dim": 5, "ffn": 40, "sinusoid": 14}
XL = Architecture("transformer_xl", SIZES, {"norm_eps": 1e-3, "softmax_scale": 0.3})  # as after growth of heads
ORDER = XL.replace({"layers": 4}, kinds=("attention", "attention", "mlp", "attention"))


@pytest.mark.parametrize("arch", [XL, ORDER], ids=["usual", "an order"])
@torch.no_grad()
def test_an_export_is_the_model(arch: Architecture, tmp_path: Path) -> None:
    """The reference model's logits; generation with a cache and without one, of prompts padded at the left as well; and
    the way back is exact."""
    folder, read = exported(arch, tmp_path)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return families.of("transformer_xl").reference(read, arch, {"inputs": ids}, torch.float32)["words"]

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    close(loaded(IDS).logits, logits(IDS))
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = IDS
    for _ in range(6):
        ids = torch.cat((ids, logits(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(loaded.generate(IDS, attention_mask=torch.ones_like(IDS), **how), ids)
    assert torch.equal(loaded.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **how), ids)
    padded, mask = (torch.nn.functional.pad(x, (3, 0)) for x in (IDS, torch.ones_like(IDS)))
    assert torch.equal(loaded.generate(padded, attention_mask=mask, **how)[:, 3:], ids)
    if arch.mixed:
        comes_back(folder, arch, read, tmp_path)
        return
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    imported = import_model(folder, tmp_path / "run/first").checkpoint
    with Reader(imported) as reader:
        assert Architecture.from_json(reader.manifest.architecture) == arch
        for name, tensor in arch.tensors().items():
            box = Box.whole(tensor.shape)
            assert torch.equal(reader.read("weight", name, box), read("weight", name, box))
    export(imported, tmp_path / "again", shard_bytes=8000)
    for file in ("config.json", "modeling_transformer_xl.py", "model.safetensors.index.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_sinusoid": 15}))
    with pytest.raises(UserError, match="sinusoid = 15 is odd"):
        import_model(folder, tmp_path / "run/second")

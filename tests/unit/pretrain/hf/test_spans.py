"""Heads that learned how far they see, in transformers: an export goes with code that has their mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture
from growth.span import Span
from pretrain import families
from pretrain.errors import UserError
from pretrain.hf.code_keys import applied
from pretrain.hf.export import export
from pretrain.hf.imports import shape_of
from pretrain.report.continuation import trusted
from tests.unit.pretrain.hf.coded import IDS, exported, imports_as, modules, says_and_writes_as
from tests.unit.pretrain.hf.test_orders import model

__all__ = ["modules"]

SPAN = Span(max=20, ramp=3)
"""Of the seven tokens of a sample, some heads see three, others all."""
LLAMA2 = replace(model("llama2", kv_heads=2, layers=2), span=SPAN)
GPT2 = replace(model("gpt2", layers=2), span=SPAN)
ORDER = replace(model("gpt2", order="sffsf"), span=SPAN)


@pytest.mark.parametrize("arch", [LLAMA2, GPT2, ORDER], ids=["llama2", "gpt2", "an order"])
@torch.no_grad()
def test_an_export_is_the_model(arch: Architecture, tmp_path: Path) -> None:
    folder, read = exported(arch, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert loaded.config.span == SPAN.to_json()
    says_and_writes_as(loaded, arch, read)
    model = families.of(arch.family).reference
    near, far = (model(read, of, {"inputs": IDS}, torch.float32)["words"] for of in (arch, replace(arch, span=None)))
    assert (near - far).abs().max() > 1e-3
    assert trusted(folder)
    imported = imports_as(folder, arch, read, tmp_path / "run/first")
    export(imported, tmp_path / "again", shard_bytes=8000)
    for file in ("config.json", "model.safetensors.index.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    loaded.save_pretrained(tmp_path / "saved")
    assert shape_of(tmp_path / "saved") == arch


@pytest.mark.parametrize(
    ("arch", "why"),
    [
        (
            replace(LLAMA2, family="qwen3"),
            "transformers' Qwen3ForCausalLM cannot express this model: its heads have spans",
        ),
        (GPT2.replace(kinds=("layer", "mlp")), r"cannot express this model: its blocks are not all alike \(1 layer, 1"),
    ],
    ids=["another class", "unlike blocks"],
)
def test_what_no_class_can_express(arch: Architecture, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        exported(arch, tmp_path)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ({}, r"config.json: order = None must be a word of s and f, with a letter for each of the 2 layers"),
        ({"span": [5]}, r"config.json: span = \[5\] must have max and ramp, in tokens, and nothing else"),
        ({"span": {"max": 5, "ramp": 0}}, "config.json: span: spans of at most 5, with a ramp of 0: give two whole"),
    ],
)
def test_a_config_that_says_it_wrongly(says: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        applied(says, replace(GPT2, span=None), "config.json")

"""Unlike blocks in transformers: orders of sublayers go with their code, shared layers are written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture
from pretrain import families
from pretrain.config import Model
from pretrain.errors import UserError
from pretrain.hf.imports import import_model
from tests.unit.pretrain.hf.coded import IDS, close, exported, imports_as, modules, says_and_writes_as

__all__ = ["modules"]

SIZES: dict[str, Any] = {"vocab": 40, "hidden": 24, "heads": 4, "ffn": 40}


def model(family: str, **more: Any) -> Architecture:
    positions = 0 if family == "llama2" else 16
    return Model(**SIZES, family=family, positions=positions, norm_eps=1e-3, **more).architecture()


ORDERS = [model("llama2", kv_heads=2, order="ssfsff"), model("gpt2", order="sffsf")]


@pytest.mark.parametrize("arch", ORDERS, ids=lambda arch: arch.family)
@torch.no_grad()
def test_an_order_goes_with_its_code(arch: Architecture, tmp_path: Path) -> None:
    folder, read = exported(arch, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    says_and_writes_as(loaded, arch, read)
    comes_back(folder, arch, read, tmp_path)


def comes_back(folder: Path, arch: Architecture, read: Any, to: Path) -> None:
    """An import of the folder has the same tensors, or says what is wrong with its order."""
    imports_as(folder, arch, read, to / "run/first")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "order": config["order"][1:]}))
    with pytest.raises(UserError, match=r"order = '.*' must be a word of s and f, with a letter for each of the"):
        import_model(folder, to / "run/second")


@torch.no_grad()
def test_an_order_of_bert(tmp_path: Path) -> None:
    """Both of its heads, with padding and two segments."""
    arch = model("bert", order={"par": 3}, layers=3)
    folder, read = exported(arch, tmp_path)
    types, valid = (torch.arange(7) > 3).long().expand_as(IDS), torch.ones_like(IDS)
    valid[1, 5:] = 0
    samples = {"inputs": IDS, "types": types, "valid": valid.float()}
    expected = families.of("bert").reference(read, arch, samples, torch.float32)
    how = {"token_type_ids": types, "attention_mask": valid}
    both = transformers.AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True).eval()(IDS, **how)
    close(both.prediction_logits[valid.bool()], expected["words"][valid.bool()])
    close(both.seq_relationship_logits, expected["next_sentence"])
    words = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()(IDS, **how).logits
    assert torch.equal(words, both.prediction_logits)
    comes_back(folder, arch, read, tmp_path)


@torch.no_grad()
def test_shared_layers_are_written_out(tmp_path: Path) -> None:
    """As layers of their own, which the usual class has."""
    arch = model("gpt2", layers=4, share=2)
    folder, read = exported(arch, tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    assert loaded.config.n_layer == 4
    close(loaded(IDS).logits, families.of("gpt2").reference(read, arch, {"inputs": IDS}, torch.float32)["words"])


def test_what_no_class_can_express(tmp_path: Path) -> None:
    arch = model("gpt2", layers=2).replace(kinds=("layer", "mlp"))
    with pytest.raises(UserError, match=r"cannot express this model: its blocks are not all alike \(1 layer, 1 mlp\)"):
        exported(arch, tmp_path)

"""Unlike blocks in transformers: orders of sublayers go with their code, shared layers are written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture, Box, Generations
from pretrain import families
from pretrain.checkpoint import Reader, write_checkpoint
from pretrain.config import Model
from pretrain.errors import UserError
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.unit.tools.runs import random_model

SIZES: dict[str, Any] = {"vocab": 40, "hidden": 24, "heads": 4, "ffn": 40}
IDS = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))


def model(family: str, **more: Any) -> Architecture:
    positions = 0 if family == "llama2" else 16
    return Model(**SIZES, family=family, positions=positions, norm_eps=1e-3, **more).architecture()


def exported(arch: Architecture, folder: Path) -> tuple[Path, Any]:
    """The folder of a drawn checkpoint, and what reads it."""
    values = random_model(arch)
    state = State(arch, Generations.first(arch), (Birth(0, "first", 0),), Progress(), None)
    imported = {"name": "x", "config": {}, "vocabulary": {"order": "identity", "tokenizer": None, "reason": "none"}}
    fields = state.fields("first", {"train": {"seq_len": 16}}, [0])
    fields = type(fields)(**{**vars(fields), "events": ({"stage": "first", "imported": imported},)})

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return values[kind, name][box.slices()]

    write_checkpoint(folder / "step-00000000", 0, ["weight"], read, fields, {})
    export(folder / "step-00000000", folder / "out", shard_bytes=8000, tokenizer=folder)
    return folder / "out", read


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers keeps the code that came with models."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


ORDERS = [model("llama2", kv_heads=2, order="ssfsff"), model("gpt2", order="sffsf")]


@pytest.mark.parametrize("arch", ORDERS, ids=lambda arch: arch.family)
@torch.no_grad()
def test_an_order_goes_with_its_code(arch: Architecture, tmp_path: Path) -> None:
    """The reference model's logits; generation with a cache and without one, of prompts padded at the left as well; and
    the way back is exact."""
    folder, read = exported(arch, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    expected = families.of(arch.family).reference(read, arch, {"inputs": IDS}, torch.float32)["words"]
    close(loaded(IDS).logits, expected)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    close(loaded(IDS, labels=IDS).loss, loss)
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    written = loaded.generate(IDS, attention_mask=torch.ones_like(IDS), **how)
    ids = IDS
    for _ in range(6):
        last = families.of(arch.family).reference(read, arch, {"inputs": ids}, torch.float32)["words"][:, -1]
        ids = torch.cat((ids, last.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(written, ids)
    assert torch.equal(loaded.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **how), ids)
    padded, mask = (torch.nn.functional.pad(x, (3, 0)) for x in (IDS, torch.ones_like(IDS)))
    assert torch.equal(loaded.generate(padded, attention_mask=mask, **how)[:, 3:], ids)
    comes_back(folder, arch, read, tmp_path)


def comes_back(folder: Path, arch: Architecture, read: Any, to: Path) -> None:
    """An import of the folder has the same tensors, or says what is wrong with its order."""
    with Reader(import_model(folder, to / "run/first").checkpoint) as reader:
        assert Architecture.from_json(reader.manifest.architecture) == arch
        for name, tensor in arch.tensors().items():
            box = Box.whole(tensor.shape)
            assert torch.equal(reader.read("weight", name, box), read("weight", name, box))
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

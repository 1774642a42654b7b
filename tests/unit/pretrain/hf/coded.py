"""Exports that go with their code, and what holds of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture, Box, Generations
from pretrain import families
from pretrain.checkpoint import Reader, write_checkpoint
from pretrain.hf.export import export
from pretrain.hf.imports import import_model
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.unit.tools.runs import random_model

IDS = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers keeps the code that came with models."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


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


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def says_and_writes_as(loaded: Any, arch: Architecture, read: Any) -> None:
    """The logits and the loss of the reference model, and its greedy text: with a cache and without one, of prompts
    padded at the left as well. read: the tensors of the checkpoint."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return families.of(arch.family).reference(read, arch, {"inputs": ids}, torch.float32)["words"]

    expected = logits(IDS)
    close(loaded(IDS).logits, expected)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    close(loaded(IDS, labels=IDS).loss, loss)
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = IDS
    for _ in range(6):
        ids = torch.cat((ids, logits(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(loaded.generate(IDS, attention_mask=torch.ones_like(IDS), **how), ids)
    assert torch.equal(loaded.generate(IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **how), ids)
    padded, mask = (torch.nn.functional.pad(x, (3, 0)) for x in (IDS, torch.ones_like(IDS)))
    assert torch.equal(loaded.generate(padded, attention_mask=mask, **how)[:, 3:], ids)


def imports_as(folder: Path, arch: Architecture, read: Any, to: Path) -> Path:
    """The checkpoint that an import of the folder makes: with the same tensors, bit for bit."""
    imported = import_model(folder, to).checkpoint
    with Reader(imported) as reader:
        assert Architecture.from_json(reader.manifest.architecture) == arch
        for name, tensor in arch.tensors().items():
            box = Box.whole(tensor.shape)
            assert torch.equal(reader.read("weight", name, box), read("weight", name, box))
    return imported

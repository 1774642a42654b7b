"""A model with low-rank adapters in transformers: merged, and as a base with an adapter that `peft` loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from growth import Architecture, Box, Generations
from growth.adapters import Adapters
from growth.span import Span
from pretrain.checkpoint.stream import write_checkpoint
from pretrain.errors import UserError
from pretrain.families import reference
from pretrain.hf.adapter import export_adapter
from pretrain.hf.export import export
from pretrain.schedule.curve import Birth
from pretrain.schedule.progress import Progress
from pretrain.state import State
from tests.unit.pretrain.families.test_hf import BERT, GPT2, IDS

LLAMA2 = Architecture(
    "llama2", {"vocab": 40, "hidden": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn": 40}
)
SHARED = GPT2.replace({"layers": 2}, calls=(0, 0, 1))
CLASSES = {"gpt2": "GPT2LMHeadModel", "bert": "MegatronBertForPreTraining", "llama2": "LlamaForCausalLM"}


def stored(folder: Path, arch: Architecture) -> tuple[Path, Any]:
    """A checkpoint of a drawn model, as grown from an import whose tokenizer is not kept, and a reader of it."""
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(tensor.shape, generator=draw) * 0.2 + (tensor.spec.init == "one")
        for name, tensor in arch.tensors().items()
    }
    fields = State(arch, Generations.first(arch), (Birth(0, "first", 0),), Progress(), None).fields("first", {}, [0])
    imported = {"name": "x", "config": {}, "vocabulary": {"order": "identity", "tokenizer": None, "reason": "none"}}
    fields = type(fields)(**{**vars(fields), "events": ({"stage": "first", "imported": imported},)})

    def read(kind: str, name: str, box: Box) -> torch.Tensor:
        return values[name][box.slices()]

    path = folder / "step-00000000"
    write_checkpoint(path, 0, ["weight"], read, fields, {})
    return path, read


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(IDS)
    return found.prediction_logits if hasattr(found, "prediction_logits") else found.logits


@pytest.mark.parametrize(
    ("usual", "on"),
    [(GPT2, ("attention", "mlp")), (SHARED, ("attention",)), (BERT, ("mlp",)), (LLAMA2, ("attention", "mlp"))],
    ids=str,
)
def test_merged_and_as_an_adapter(usual: Architecture, on: tuple[str, ...], tmp_path: Path) -> None:
    """The logits of the reference model, either way; GPT-2's three ranks of c_attn are one of three times the rank. The
    adapter of a shared layer is written out with it."""
    import peft  # seconds

    arch = usual.with_adapters(Adapters(2, 6.0, on))
    checkpoint, read = stored(tmp_path, arch)
    ours = reference.logits(read, arch, IDS)
    kind = getattr(transformers, CLASSES[arch.family])
    export(checkpoint, tmp_path / "merged", shard_bytes=1 << 30, tokenizer=tmp_path)
    export(checkpoint, tmp_path / "base", shard_bytes=1 << 30, tokenizer=tmp_path, merged=False)
    export_adapter(checkpoint, tmp_path / "adapter", base=str(tmp_path / "base"))
    merged, base = (kind.from_pretrained(tmp_path / name) for name in ("merged", "base"))
    assert (logits(merged) - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert (logits(base) - ours).abs().max() > 1e-2 * ours.abs().max()
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert (logits(adapted) - ours).abs().max() <= 1e-5 * ours.abs().max()
    trained = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    zeros = 2 * 2 * 3 * 24 * ("attention" in on) if arch.family == "gpt2" else 0  # of B, outside of its blocks
    assert trained == arch.depth * ((arch.parameters() - usual.parameters()) // arch.layers + zeros)


def test_what_has_no_adapters(tmp_path: Path) -> None:
    checkpoint, _ = stored(tmp_path, GPT2)
    with pytest.raises(UserError, match=r"has no adapters: they come from a stage with train\.lora"):
        export_adapter(checkpoint, tmp_path / "adapter")
    checkpoint, _ = stored(tmp_path / "other", GPT2.with_adapters(Adapters(1, 1.0, ("mlp",))))
    with pytest.raises(UserError, match="is there already: choose another folder"):
        export_adapter(checkpoint, checkpoint)
    order = GPT2.replace(kinds=("attention", "mlp", "mlp")).with_adapters(Adapters(1, 1.0, ("mlp",)))
    checkpoint, _ = stored(tmp_path / "order", order)
    with pytest.raises(UserError, match=r"peft has no such model \(sff\): export it merged"):
        export_adapter(checkpoint, tmp_path / "adapter")
    checkpoint, _ = stored(tmp_path / "spans", replace(GPT2, span=Span(5, 3)).with_adapters(Adapters(1, 1.0, ("mlp",))))
    with pytest.raises(UserError, match=r"peft has no such model \(its heads have spans\): export it merged"):
        export_adapter(checkpoint, tmp_path / "adapter")

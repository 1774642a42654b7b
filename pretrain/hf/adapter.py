"""The adapters of a checkpoint as a folder that `peft` loads (its LoRA format), beside a base model."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from growth import Architecture, Box
from growth.adapters import names
from pretrain.checkpoint import Reader
from pretrain.config.orders import in_words
from pretrain.errors import UserError
from pretrain.families.common.hf.form import HfForm
from pretrain.hf import form_of
from pretrain.hf.files import DTYPES
from pretrain.runtime.files import fsync_folder, make_folder, write_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_adapter(checkpoint: Path, folder: Path, *, dtype: str = "fp32", base: str = "") -> dict[str, int]:
    """Write the adapters of a checkpoint to a folder that is not there yet; the sizes of its files.

    base: what the adapter's configuration calls the model that it belongs to, if anything. Raises UserError for a
    checkpoint without adapters, a family without a form in transformers and a folder that is there already.
    """
    with Reader(checkpoint) as reader:
        arch = Architecture.from_json(reader.manifest.architecture)
        form = form_of(arch.family)
        if arch.adapters is None:
            raise UserError(f"{checkpoint} has no adapters: they come from a stage with train.lora")
        if arch.mixed or arch.span:
            unusual = in_words(arch) or "its heads have spans"
            raise UserError(f"{checkpoint}: peft has no such model ({unusual}): export it merged")
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is there already: choose another folder")
        content = {name: value.to(DTYPES[dtype]).contiguous() for name, value in tensors(arch, form, reader.read)}
    work = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    make_folder(work)
    write_file(work / WEIGHTS, save(content, metadata={"format": "pt"}))
    write_file(work / CONFIG, (json.dumps(config(arch, form, base), indent=2, sort_keys=True) + "\n").encode())
    work.rename(folder)
    fsync_folder(work.parent)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def config(arch: Architecture, form: HfForm, base: str) -> dict[str, Any]:
    """adapter_config.json. A fused matrix has an adapter of a higher rank, with the same factor alpha / rank."""
    assert arch.adapters is not None
    rank, alpha = arch.adapters.rank, arch.adapters.alpha
    modules = {_module(row): len(form.stored(row).parts) for row in _adapted(arch, form)}
    layer = {re.escape(module).replace(r"\{layer\}", r"\d+"): parts for module, parts in modules.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if form.generates else None,
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(form.stored(row).turned for row in _adapted(arch, form)),
        "inference_mode": True,
        "target_modules": "|".join(layer),
        "rank_pattern": {name: rank * parts for name, parts in layer.items() if parts > 1},
        "alpha_pattern": {name: alpha * parts for name, parts in layer.items() if parts > 1},
    }


def tensors(
    arch: Architecture, form: HfForm, read: Callable[[str, str, Box], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The factors by the names that peft gives them. Where n matrices are fused into one, A has theirs one under the
    other, [n rank, in], and B is their blocks along the diagonal, [n out, n rank]: the product is that of each."""

    def whole(name: str) -> torch.Tensor:
        return read("weight", name, Box.whole(arch.tensor(name).shape))

    for row in _adapted(arch, form):
        for block, layer in enumerate(arch.calls):  # as the model is written out
            parts = [names(part.format(layer=layer)) for part in form.stored(row).parts]
            module = f"base_model.model.{_module(row).format(layer=block)}"
            yield f"{module}.lora_A.weight", torch.cat([whole(a) for a, _ in parts])
            yield f"{module}.lora_B.weight", torch.block_diag(*(whole(b) for _, b in parts))


def _module(row: str) -> str:
    return row.removesuffix(".weight")


def _adapted(arch: Architecture, form: HfForm) -> list[str]:
    """The rows of the form that are made of matrices with adapters."""
    adapted = {row.name for row in arch.table.tensors if arch.adapters and arch.adapters.adapts(row)}
    return [row for row in form.rows if adapted.issuperset(form.stored(row).parts)]

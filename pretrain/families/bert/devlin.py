"""BERT as Devlin et al. (2019) trained it, LayerNorm behind each branch, which teaches as transformers' own model.

The model on Megatron-core has its LayerNorm before each branch, and cannot take such weights. Both have the same
parameters and multiply the same matrices.

Shapes: B micro-batch, S sequence, C hidden size, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from growth import Architecture
from pretrain.data.samples import Samples
from pretrain.errors import UserError
from pretrain.families.bert.hf import SIZES
from pretrain.runtime.documents import one_line


class Words(torch.nn.Module):
    """samples -> the logits of the words, [B, S, V]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Samples) -> Tensor:
        logits: Tensor = self.model(**_inputs(samples, self.model.dtype)).logits
        return logits


class LastAttention(torch.nn.Module):
    """samples -> the queries, keys and values of the last layer, each [B, S, C]; the rest of that layer is let go."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        *below, last = model.encoder.layer
        model.encoder.layer = torch.nn.ModuleList(below)
        attention = last.attention.self
        self.model = model
        self.parts = torch.nn.ModuleList([attention.query, attention.key, attention.value])

    def forward(self, samples: Samples) -> tuple[Tensor, ...]:
        hidden = self.model(**_inputs(samples, self.model.dtype)).last_hidden_state
        return tuple(part(hidden) for part in self.parts)


def load(folder: Path, arch: Architecture, rows: Tensor, dtype: torch.dtype, *, words: bool) -> torch.nn.Module:
    """`Words` or `LastAttention` of the model in a folder, on the CPU, as deep as `arch`: nothing above it is read.

    rows: int64 [V], for each id of the samples that of the folder. Its configuration is made of what `arch` says alone.
    Raises UserError for a folder that transformers cannot load, or which lacks weights.
    """
    import transformers

    config = transformers.BertConfig(
        **{key: arch.sizes[axis] for axis, key in SIZES.items()}, layer_norm_eps=arch.scalars["norm_eps"]
    )
    kind, how = (transformers.BertForMaskedLM, {}) if words else (transformers.BertModel, {"add_pooling_layer": False})
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # it would name all that is not read
    transformers.logging.disable_progress_bar()
    try:
        model, told = kind.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **how,
        )
    except Exception as error:  # transformers raises almost anything for a damaged folder
        reason = one_line(str(error))
        raise UserError(f"distill.teacher: {folder}: transformers cannot load this model: {reason}") from error
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"distill.teacher: {folder}: {len(missing)} tensor(s) of the config are not there, such as {missing[0]}"
        )
    with torch.no_grad():
        for parameter in _of_the_vocabulary(model):
            parameter.copy_(parameter[rows])
    return Words(model) if words else LastAttention(model)


def _of_the_vocabulary(model: Any) -> list[torch.nn.Parameter]:
    """What has a row for each piece; the embedding is the head's matrix too, and is there once."""
    head = model.get_output_embeddings()
    parts = [model.get_input_embeddings().weight, *((head.weight, head.bias) if head is not None else ())]
    return list({id(part): part for part in parts}.values())


def _inputs(samples: Samples, dtype: torch.dtype) -> dict[str, Tensor]:
    """What transformers' model takes; the mask is made here, since making it there waits for the device."""
    valid = samples["valid"].bool()
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, torch.finfo(dtype).min)
    return {"input_ids": samples["inputs"], "token_type_ids": samples["types"], "attention_mask": mask[:, None, None]}

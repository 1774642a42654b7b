"""A teacher that transformers computes, as a whole on every tensor-parallel rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config import Distill
from pretrain.data.samples import Samples
from pretrain.engine.megatron import Numerics
from pretrain.engine.teacher import Teacher
from pretrain.families.common.vocabulary import padded
from pretrain.families.hf_teachers import Folder
from pretrain.layout import Layout
from pretrain.losses.relations import Attended


class WholeTeacher(Teacher):
    """The model of transformers in a folder, of which each rank takes the heads or the pieces that it has of its
    student. It comes with its weights: there is nothing to fill.

    Raises UserError for a folder that cannot be loaded.
    """

    whole = True

    def __init__(self, folder: Folder, layout: Layout, numerics: Numerics, distill: Distill, seq_len: int) -> None:
        self._folder = folder
        super().__init__(folder.arch, layout, numerics, distill, seq_len)

    def _built(self, numerics: Numerics, seq_len: int) -> torch.nn.Module:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return self._folder.load(self.arch, numerics.dtype, words=self.distill.kind == "logits").to(device)

    def said(self, samples: Samples) -> Any:
        distill, tp, sizes = self.distill, self.layout.tp, self.arch.sizes
        if distill.kind == "logits":
            logits: Tensor = self._model(samples)
            whole = F.pad(logits, (0, padded(sizes["vocab"], tp) - sizes["vocab"])) if tp > 1 else logits
            return whole.chunk(tp, -1)[self.tp_rank].transpose(0, 1).contiguous()  # the rest is let go
        heads = sizes["heads"] if distill.kind == "minilm" else distill.relation_heads
        query, key, value = (
            x.transpose(0, 1).chunk(tp, -1)[self.tp_rank].unflatten(-1, (heads // tp, -1)) for x in self._model(samples)
        )
        return Attended(query, key, value, sizes["head_dim"] ** -0.5, causal=False)

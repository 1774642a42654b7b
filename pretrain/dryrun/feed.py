"""The text of a dry run: samples of the right shapes, without a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pretrain import families
from pretrain.config import Stage
from pretrain.data.documents import STARTS
from pretrain.data.samples import Samples
from pretrain.data.stream.windows import Rows
from pretrain.families.common.text import BYTES_PER_TOKEN, Feed, HeldOut, Taken

DOCUMENTS = 8
"""In a sample, where documents are kept apart."""
HELD_OUT = 2
"""Micro-batches of held-out text (of a pipeline that is interleaved: times its ranks)."""


class Nothing(Feed):
    """Zeros, of a tokenizer each of whose new pieces is made of two others."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self._family = stage, families.of(stage.model.family)
        self._family.text.check(stage)
        self.tokenizer: Any = SimpleNamespace(new_pieces=lambda old, new: [(0, 1)] * (new - old), hash="")

    def _opened(self, cursor: Mapping[str, Any] | None) -> Any:
        return SimpleNamespace(cursor={})  # there is no place in it

    def _take(self, n: int, rows: Rows, progress: float) -> Taken:
        samples = self._samples(len(np.arange(n)[rows]), self.stage.train.seq_len)
        return Taken(samples, n * BYTES_PER_TOKEN if self._family.text.counts_bytes else None)

    def held_out(self, unit: int) -> HeldOut:
        samples = dict(self._samples(HELD_OUT * unit, self.stage.train.seq_len))
        samples.setdefault("mask", torch.ones(samples["labels"].shape))
        return HeldOut(samples, samples["labels"].numel() if self._family.text.counts_bytes else None)

    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        return self._samples(n, seq_len)

    def batch(self, n: int) -> Samples:
        return self._samples(n, self.stage.train.seq_len)

    def _samples(self, n: int, seq_len: int) -> Samples:
        arch, family = self.stage.architecture(), self._family
        samples = family.samples_of(arch, torch.zeros(n, seq_len + family.tokens_ahead(arch), dtype=torch.int64))
        if family.prompt:  # what it is trained on is padded in places, as prompts are: by a document in front of it
            return {**samples, STARTS: torch.tensor([[0, 1]], dtype=torch.int32).repeat(n, 1)}
        if not self.stage.data.reset_attention:
            return samples
        return {**samples, STARTS: torch.arange(0, seq_len, -(-seq_len // DOCUMENTS), dtype=torch.int32).repeat(n, 1)}

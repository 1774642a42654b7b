"""The text of a dry run: samples of the right shapes, without a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from pretrain.config import Stage
from pretrain.data.samples import Samples, causal
from pretrain.families.text import BYTES_PER_TOKEN, Feed, HeldOut, Taken, Wanted

HELD_OUT = 2
"""Micro-batches of held-out text (of a pipeline that is interleaved: times its ranks)."""


class Nothing(Feed):
    """Zeros, of a tokenizer each of whose new pieces is made of two others."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.tokenizer: Any = SimpleNamespace(new_pieces=lambda old, new: [(0, 1)] * (new - old), hash="")

    def _opened(self, cursor: Mapping[str, Any] | None) -> Any:
        return SimpleNamespace(cursor={})  # there is no place in it

    def _take(self, wanted: Wanted) -> Taken:
        samples = self._samples(wanted.n // wanted.ranks, self.stage.train.seq_len)
        return Taken(samples, None if "order" in samples else wanted.n * BYTES_PER_TOKEN)

    def held_out(self, unit: int) -> HeldOut:
        samples = dict(self._samples(HELD_OUT * unit, self.stage.train.seq_len))
        bert = "order" in samples
        samples.setdefault("mask", torch.ones(samples["labels"].shape))
        return HeldOut(samples, None if bert else samples["labels"].numel())

    def probe(self, n: int, vocab: int, seq_len: int) -> Samples:
        return self._samples(n, seq_len)

    def batch(self, n: int) -> Samples:
        return self._samples(n, self.stage.train.seq_len)

    def resolved(self) -> Stage:
        """Budgets are in tokens already; see `settings`."""
        train = self.stage.train
        warmup = train.warmup_tokens or round(train.warmup * train.tokens)
        return replace(self.stage, train=replace(train, warmup_tokens=warmup))

    def _samples(self, n: int, seq_len: int) -> Samples:
        samples = causal(torch.zeros(n, seq_len + 1, dtype=torch.int64))
        if "types" not in self.stage.model.architecture().sizes:
            return samples
        ones = torch.ones(n, seq_len)
        return {
            **samples,
            "mask": ones,
            "types": torch.zeros(n, seq_len, dtype=torch.int64),
            "valid": ones,
            "order": torch.zeros(n, dtype=torch.int64),
        }

"""Validation: the same bytes of held-out text at every stage, as loss per token and as bits per byte."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pretrain.config import Stage
from pretrain.data.corpus import Corpus
from pretrain.data.validation import validation_set
from pretrain.engine import Engine
from pretrain.samples import causal, part


class Validation:
    """The held-out text in a stage's segmentation, this data-parallel rank's part of it; call it to measure."""

    def __init__(self, engine: Engine, stage: Stage, corpus: Corpus) -> None:
        t = stage.train
        text = validation_set(
            corpus,
            vocab=stage.model.vocab,
            seq_len=t.seq_len,
            seed=stage.seed,
            validation=stage.data.validation_fraction,
            limit_bytes=t.eval_bytes,
        )
        self.engine, self.bytes, self.count = engine, text.bytes, int(text.mask.sum())
        layout = engine.layout
        unit = layout.dp * t.micro_batch * (layout.pp if layout.virtual > 1 else 1)
        padding = -len(text.tokens) % unit
        tokens = F.pad(torch.from_numpy(text.tokens), (0, 0, 0, padding))
        mask = F.pad(torch.from_numpy(text.mask).float(), (0, 0, 0, padding))
        self.samples = part(causal(tokens, mask), engine.dp_rank, layout.dp)

    def __call__(self) -> dict[str, float]:
        """validation_loss in nats per token and validation_bits_per_byte (collective)."""
        nats = self.engine.evaluate(self.samples)["loss"]
        return {
            "validation_loss": nats / self.count,
            "validation_bits_per_byte": nats / math.log(2) / self.bytes,
        }

"""Validation: the same held-out text at every stage, as loss per label and, where that makes sense, bits per byte."""

from __future__ import annotations

import math

from pretrain.data.samples import part
from pretrain.engine.engine import Engine
from pretrain.families.common.text import Feed


class Validation:
    """The held-out text in a stage's segmentation, this data-parallel rank's part of it; call it to measure."""

    def __init__(self, engine: Engine, feed: Feed) -> None:
        layout = engine.layout
        text = feed.held_out(layout.batch_unit(engine.micro_batch))
        self.engine, self.bytes = engine, text.bytes
        self.counts = [term.count(text.samples) for term in engine.family.losses]
        self.samples = part(text.samples, engine.dp_rank, layout.dp)

    def __call__(self) -> dict[str, float]:
        """validation_loss in nats per label, its terms if there are several, validation_bits_per_byte (collective)."""
        nats = self.engine.evaluate(self.samples)
        means = {name: total / count for (name, total), count in zip(nats.items(), self.counts, strict=True)}
        record = {"validation_loss": sum(means.values())}
        if len(means) > 1:
            record |= {f"validation_{name}": mean for name, mean in means.items()}
        if self.bytes is not None:
            record["validation_bits_per_byte"] = sum(nats.values()) / math.log(2) / self.bytes
        return record

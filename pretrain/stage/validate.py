"""Validation: the same held-out text at every stage, as loss per label and, where that makes sense, bits per byte."""

from __future__ import annotations

import math
from dataclasses import replace

from pretrain.data.samples import Samples, in_lanes, part
from pretrain.engine.engine import Engine
from pretrain.families.common.text import Feed, HeldOut


class Validation:
    """The held-out text in a stage's segmentation, this data-parallel rank's part of it; call it to measure.

    With a memory it is cut into as many lanes as the micro-batches of all data-parallel ranks have rows. Each begins
    with nothing to remember: so what is measured depends a little on how many these are.
    """

    def __init__(self, engine: Engine, feed: Feed) -> None:
        layout = engine.layout
        self.engine, self._texts = engine, feed.measured(layout.batch_unit(engine.micro_batch))
        self._counts = [[term.count(text.samples) for term in engine.family.losses] for text in self._texts]
        train = feed.stage.train
        self._memory = train.eval_memory or train.memory
        self._texts = tuple(replace(text, samples=self._own(text.samples)) for text in self._texts)

    def _own(self, samples: Samples) -> Samples:
        rank, ranks = self.engine.dp_rank, self.engine.layout.dp
        if self._memory:
            return in_lanes(samples, rank, ranks, self.engine.micro_batch)
        return part(samples, rank, ranks)

    def __call__(self) -> dict[str, float]:
        """validation_loss in nats per label, its terms if there are several, validation_bits_per_byte (collective).

        Of a mixture: these of each source, and their means by share. With an average of the weights: the same of it,
        as validation_average_loss and so on.
        """
        record, average = self._measured(), self.engine.average
        if average:
            with average.in_place():
                for key, value in self._measured().items():
                    record[f"validation_average_{key.removeprefix('validation_')}"] = value
        return record

    def _measured(self) -> dict[str, float]:
        records = [self._of(text, counts) for text, counts in zip(self._texts, self._counts, strict=True)]
        if not self._texts[0].source:
            return records[0]
        shares = [text.share for text in self._texts]
        mean = {
            key: sum(share * record[key] for share, record in zip(shares, records, strict=True) if share)
            for key in records[0]
        }
        each = {
            f"{key}_{text.source}": value
            for text, record in zip(self._texts, records, strict=True)
            for key, value in record.items()
        }
        return mean | each

    def _of(self, text: HeldOut, counts: list[float]) -> dict[str, float]:
        nats = self.engine.evaluate(text.samples, self._memory)
        means = {name: total / count for (name, total), count in zip(nats.items(), counts, strict=True)}
        record = {"validation_loss": sum(means.values())}
        if len(means) > 1:
            record |= {f"validation_{name}": mean for name, mean in means.items()}
        if text.bytes is not None:
            record["validation_bits_per_byte"] = sum(nats.values()) / math.log(2) / text.bytes
        return record

"""The text of Convolution Attention: labels a unit ahead, and padding at the left of some samples.

Held-out text begins with a unit of which only the last place, the end of a text, is no padding, as an empty prompt
does: so each of its tokens is a label once, and bits per byte are of the same bytes as any other family's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from pretrain.config import Stage
from pretrain.data.documents import STARTS
from pretrain.data.packing import Packed
from pretrain.data.samples import Samples, causal
from pretrain.errors import UserError
from pretrain.families.common.text import CausalFeed, HeldOut
from pretrain.families.convolution_attention.padding import starts
from pretrain.families.convolution_attention.stream import PaddedBatch, UnitStream


class ConvolutionFeed(CausalFeed):
    """Text whose every token is a label, of the input a unit before it."""

    _text: UnitStream  # type: ignore[assignment]

    @classmethod
    def check(cls, stage: Stage) -> None:
        super().check(stage)
        if stage.data.packing != "concatenate":
            raise UserError(
                f"data.packing: {stage.data.packing}, but a label of {stage.model.family} may be of the document "
                "behind its input's; use concatenate"
            )
        if stage.log.samples.prompt:
            raise UserError(
                f"log.samples.prompt: a {stage.model.family} writes a unit of tokens at a time, which a stage does not "
                "while it trains; leave it out, and use tools/generate.py on its checkpoints"
            )

    @staticmethod
    def objective(data: Mapping[str, Any]) -> str:
        return "a token that is the model's longest unit ahead, not the next one"

    @cached_property
    def ahead(self) -> int:
        return self.stage.model.architecture().unit

    def _opened(self, cursor: Mapping[str, Any] | None) -> UnitStream:  # type: ignore[override]
        data = self.stage.data
        return UnitStream(
            self.corpus,
            ahead=self.ahead,
            vocab=self.stage.model.vocab,
            seq_len=self.stage.train.seq_len,
            seed=self.stage.seed,
            validation=data.validation_fraction,
            cursor=dict(cursor) if cursor else None,
            window=data.window,
        )

    def _samples(self, batch: PaddedBatch) -> tuple[Samples, int | None]:  # type: ignore[override]
        samples = causal(torch.from_numpy(batch.tokens), self.ahead)
        return {**samples, STARTS: starts(torch.from_numpy(batch.padding))}, None

    def held_out(self, unit: int) -> HeldOut:
        text = super().held_out(unit)
        padding = torch.zeros(len(text.samples["inputs"]), dtype=torch.int64)
        padding[0] = self.ahead - 1
        return HeldOut({**text.samples, STARTS: starts(padding)}, text.bytes)

    def packings(self) -> dict[str, Packed]:
        return {}


TEXT = ConvolutionFeed

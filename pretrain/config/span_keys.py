"""The keys of a stage under `model.span`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from growth.span import Span as Spans
from pretrain.config.kinds import Derived, Size
from pretrain.config.section import Section


@dataclass(frozen=True)
class Span(Section):
    """How far heads see, where each learns that (adaptive span, Sukhbaatar et al. 2019): a span of z tokens, and a ramp
    over which what it sees fades. Of causal language models. Keys that no head of a layer reaches are not computed
    with, in blocks of 64."""

    max: Derived = 0
    """The largest span, in tokens; 0 or absent: every head sees all there is. The smallest is 0, where heads begin."""
    ramp: Size = 32
    """Tokens over which a head fades behind its span."""
    penalty: Annotated[float, Field(ge=0)] = 2e-6
    """What the loss has, in nats, of each token of the mean span of the heads of a layer, summed over layers."""

    def spans(self) -> Spans | None:
        """For growth; None without."""
        return Spans(self.max, self.ramp) if self.max else None

"""The keys of a stage under `model.span`, and whether they fit it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from growth.span import Span as Spans
from pretrain.config.kinds import Derived, Size
from pretrain.config.section import Section

if TYPE_CHECKING:
    from pretrain.config.keys import Stage


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


def problems(stage: Stage) -> Iterator[str]:
    """Yields what is wrong with the spans of a stage: key, value, what would fit."""
    span, distill = stage.model.span, stage.distill
    for key in ("ramp", "penalty"):
        if not span.max and (value := getattr(span, key)) != getattr(Span(), key):
            yield f"model.span.{key}: {value:g}, but model.span.max is 0 or missing: give the largest span, as 1024"
    if span.max and distill.teacher and distill.kind != "logits":
        yield (
            f"distill.kind: {distill.kind} compares what every token says to every other, and heads with model.span do "
            "not see them all; use logits"
        )


def misfits(old: Stage, new: Stage) -> Iterator[str]:
    """Yields what is wrong with the spans of a stage that grows from another."""
    for key in ("max", "ramp"):
        before, now = getattr(old.model.span, key), getattr(new.model.span, key)
        if before != now:
            yield f"model.span.{key}: {now} after {before} in stage {old.name!r}; spans are shares of it: keep it"

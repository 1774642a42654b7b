"""Whether the spans of a stage's heads fit it, and the stage before."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.config.keys import Stage
from pretrain.config.span_keys import Span


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

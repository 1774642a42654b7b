"""The progress of a run: steps, tokens, FLOPs, seconds and held-out losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite


@dataclass(frozen=True)
class Progress:
    """How far a run is. step and stage_tokens count from the start of the stage, the others from that of the run.

    flops are model FLOPs of training, growth events included; seconds are of training, without starts. held_out are
    the losses of the validations since the model has its shape in this stage, oldest first.
    """

    step: int = 0
    stage_tokens: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    held_out: tuple[float, ...] = ()

    def after(self, *, tokens: int, flops: float, seconds: float) -> Progress:
        """The progress one optimizer step later."""
        return Progress(
            self.step + 1,
            self.stage_tokens + tokens,
            self.tokens + tokens,
            self.flops + flops,
            self.seconds + seconds,
            self.held_out,
        )

    def validated(self, loss: float) -> Progress:
        """The progress after a validation; a loss that is not finite says nothing."""
        return replace(self, held_out=(*self.held_out, loss)) if isfinite(loss) else self

    def next_stage(self) -> Progress:
        """The progress at the same moment, as the start of the next stage."""
        return replace(self, step=0, stage_tokens=0, held_out=())

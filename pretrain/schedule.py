"""The learning rate of a stage, as a function of the tokens it has trained on."""

from dataclasses import dataclass
from math import cos, pi
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then down to `min_lr` by a half cosine (Loshchilov & Hutter 2017) or a line, or a constant.

    All lengths are in tokens, so a change of the batch size leaves the curve as it is.
    """

    lr: float
    """Peak learning rate."""
    tokens: int
    """Tokens of the stage; the fall ends there, and the rate stays at `min_lr` beyond."""
    warmup_tokens: int = 0
    min_lr: float = 0.0
    shape: Literal["cosine", "linear", "constant"] = "cosine"

    def at(self, tokens: int) -> float:
        """The learning rate of a step after which `tokens` of this stage have been trained on.

        Counted at the end of the step, so that the first step of a warm-up learns something.
        """
        if tokens < self.warmup_tokens:
            return self.lr * tokens / self.warmup_tokens
        if self.shape == "constant" or self.tokens <= self.warmup_tokens:
            return self.lr
        progress = min(1.0, (tokens - self.warmup_tokens) / (self.tokens - self.warmup_tokens))
        left = (1 + cos(pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.min_lr + (self.lr - self.min_lr) * left

"""What loss a curriculum would end at, by a law that was fitted to models from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from pretrain.estimate.cost import Cost
from pretrain.estimate.flops import training_flops


@dataclass(frozen=True)
class Law:
    """The loss, in nats a token, of N parameters after D tokens: least + a / N^alpha + b / D^beta."""

    least: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.least + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def tokens_to(self, loss: float, parameters: float) -> float:
        """After how many tokens from scratch a model has a loss; infinite where it never has."""
        rest = loss - self.least - self.a / parameters**self.alpha
        return (self.b / rest) ** (1 / self.beta) if rest > 0 else inf


HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)
"""Hoffmann et al. 2022, "Training compute-optimal large language models", equation 10: causal models of 0.07 to 16
billion parameters, on text and with a vocabulary of their own."""


def losses(law: Law, costs: Sequence[Cost]) -> list[float]:
    """At the end of each stage.

    The law knows nothing of growth. It is taken that a grown model is one of its size that has reached the loss of the
    model before, and that it goes on as one from scratch would from there: the event costs nothing, and nothing of the
    tokens of the smaller model is worth more than this. What recipes really do is what tools/study.py measures.
    """
    ends: list[float] = []
    for cost in costs:
        size = cost.arch.parameters()
        before = law.tokens_to(ends[-1], size) if ends else 0.0
        ends.append(law.loss(size, before + cost.stage.train.tokens))
    return ends


def from_scratch(law: Law, costs: Sequence[Cost]) -> tuple[float, float]:
    """The loss of the last model alone, on the tokens of all stages and with the FLOPs of all stages."""
    last = costs[-1]
    flops = sum(cost.flops for cost in costs)
    tokens = flops / training_flops(last.arch, last.stage.train.seq_len)
    size = last.arch.parameters()
    return law.loss(size, sum(cost.stage.train.tokens for cost in costs)), law.loss(size, tokens)

"""The learning rate of each generation, as a function of the tokens that the run has trained on.

A curve says what the rate is at each position between its beginning, 0, and its end, 1. A pace says where a generation
is on it. Generations born together have one pace; a growth event moves the paces, never the curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, pi
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pretrain.config import Curriculum, Stage

Shape = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True)
class Curve:
    """A learning rate that falls from `lr` to `min_lr`.

    It falls along a half cosine (Loshchilov & Hutter 2017), along a line, along a line over the share `decay` at the
    end after a constant (wsd: warm-up, stable, decay; Hu et al. 2024, MiniCPM), or not at all.
    """

    lr: float
    min_lr: float = 0.0
    shape: Shape = "cosine"
    decay: float = 0.1

    def at(self, position: float) -> float:
        """The learning rate at a position in [0, 1]."""
        if self.shape == "constant":
            return self.lr
        share = {
            "cosine": (1 + cos(pi * position)) / 2,
            "linear": 1 - position,
            "wsd": min(1.0, (1 - position) / self.decay) if self.decay else 1.0,
        }[self.shape]
        return self.min_lr + (self.lr - self.min_lr) * share


@dataclass(frozen=True)
class Pace:
    """How a generation moves along the curve; `since`, `until` and `warmup_from` are tokens of the run.

    At `since` it is at `position`; from there it moves evenly, to the end of the curve at `until`. All the while it
    warms up, linearly, over the `warmup_tokens` after `warmup_from`. `factor` multiplies its rate; `weight_decay` is
    its own, or None if it has that of the stage.
    """

    since: int
    position: float
    until: int
    warmup_from: int = 0
    warmup_tokens: int = 0
    factor: float = 1.0
    weight_decay: float | None = None

    def at(self, tokens: int) -> float:
        """The position after these tokens."""
        if tokens <= self.since or self.until <= self.since:
            return self.position
        return self.position + (1 - self.position) * min(1.0, (tokens - self.since) / (self.until - self.since))

    def rate(self, curve: Curve, tokens: int) -> float:
        """The learning rate of a step after which `tokens` have been trained on.

        Counted at the end of the step, so that the first step of a warm-up learns something.
        """
        since_warmup = tokens - self.warmup_from
        warm = since_warmup / self.warmup_tokens if since_warmup < self.warmup_tokens else 1.0
        return self.factor * warm * curve.at(self.at(tokens))

    def advanced(self, tokens: int) -> Pace:
        """The same pace, described from these tokens on."""
        return self if tokens <= self.since else replace(self, since=tokens, position=self.at(tokens))

    def restarted(self, tokens: int, warmup_tokens: int) -> Pace:
        """The pace back at the beginning of the curve, which it leaves when it is warm."""
        return replace(
            self, since=tokens + warmup_tokens, position=0.0, warmup_from=tokens, warmup_tokens=warmup_tokens
        )

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Pace:
        return Pace(**data)


@dataclass(frozen=True)
class Birth:
    """When a generation was born (tokens of the run, stage, steps of the run), how many updates it had when it was
    stored, and where it is on the learning rate's curve (None before the loop of its stage has begun)."""

    birth_tokens: int
    stage: str
    adam_step: int
    birth_step: int = 0
    pace: Pace | None = None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Birth:
        return Birth(**{**data, "pace": Pace.from_json(data["pace"]) if data.get("pace") else None})


def curve_of(stage: Stage) -> Curve:
    """The curve of a stage."""
    t = stage.train
    return Curve(t.lr, t.min_lr, t.schedule, t.decay)


def sharing(curriculum: Curriculum, stage: Stage) -> list[Stage]:
    """The stages after this one that go on along its curve: those before the first that restarts or has no parent."""
    later = curriculum.stages[[s.name for s in curriculum.stages].index(stage.name) + 1 :]
    stages = []
    for other in later:
        if other.from_scratch or other.grow.schedule == "restart":
            break
        stages.append(other)
    return stages


def paced(births: Sequence[Birth], stage: Stage, begins: bool, tokens: int, until: int) -> tuple[Birth, ...]:
    """The births with a pace for each: at the beginning of a stage, after a growth event inside it, on a resume.

    begins: the stage has not trained yet, and its `grow.schedule` says how its growth event moves the paces.
    tokens: of the run, now; until: of the run, where the curve ends. A birth without a pace is new, and warms up over
    the stage's warm-up.
    """
    grow, warmup = stage.grow, stage.train.warmup_tokens
    old = [b.pace for b in births if b.pace]
    if begins:
        old = [p.advanced(tokens) for p in old]
        if grow.schedule == "rewind":
            old = [replace(p, position=p.position * (1 - grow.rewind)) for p in old]
        elif grow.schedule == "restart":
            old = [p.restarted(tokens, warmup) for p in old]
    old = [replace(p, until=until) for p in old]
    first = Pace(tokens, 0.0, until).restarted(tokens, warmup)
    start = old[0] if old and not (begins and grow.schedule == "rewarm") else first
    new = replace(
        start, warmup_from=tokens, warmup_tokens=warmup, factor=grow.new_lr, weight_decay=grow.new_weight_decay
    )
    remaining = iter(old)

    def pace(birth: Birth) -> Pace:
        if birth.pace:
            return next(remaining)
        grown = bool(old) or birth.stage == stage.name != births[0].stage  # an import too has no pace at first
        return new if grown else first

    return tuple(replace(b, pace=pace(b)) for b in births)


def rates(births: Sequence[Birth], stage: Stage, tokens: int) -> list[float]:
    """The learning rate of each generation in a step after which the run has trained on `tokens`."""
    curve = curve_of(stage)
    factors = [1.0 if b.stage == stage.name else stage.grow.old_lr for b in births]
    return [f * b.pace.rate(curve, tokens) for f, b in zip(factors, births, strict=True) if b.pace]


def rate_factors(births: Sequence[Birth], stage: Stage) -> list[float]:
    """What the stage multiplies the learning rate of each generation by."""
    factors = [1.0 if b.stage == stage.name else stage.grow.old_lr for b in births]
    return [f * (b.pace.factor if b.pace else 1.0) for f, b in zip(factors, births, strict=True)]


def frozen_generations(births: Sequence[Birth], stage: Stage) -> set[int]:
    """The numbers of the generations whose learning rate is 0 for the whole of the stage."""
    return {n for n, factor in enumerate(rate_factors(births, stage)) if not factor}


def weight_decays(births: Sequence[Birth], stage: Stage) -> list[float]:
    """The weight decay of each generation."""
    own_decays = [b.pace.weight_decay if b.pace else None for b in births]
    return [stage.train.weight_decay if value is None else value for value in own_decays]

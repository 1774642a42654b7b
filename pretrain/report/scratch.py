"""What the FLOPs of a grown run buy from scratch, out of runs of fixed sizes that were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pretrain.errors import UserError
from pretrain.report import comparison
from pretrain.report.comparison import Line
from pretrain.report.plot import short

SLACK = 0.02  # a run from scratch ends with a whole step: what its FLOPs may be beyond those of the grown run


@dataclass(frozen=True)
class FromScratch:
    """A run of one size, at its end. loss: held out, of the metric that is compared."""

    name: str
    parameters: int
    flops: float
    loss: float
    same_size: bool
    """Whether its model is that which the grown run ended with."""


@dataclass(frozen=True)
class Verdict:
    """A grown run beside the best runs from scratch that used no more FLOPs; None where there is none."""

    metric: str
    loss: float
    same_size: FromScratch | None
    best: FromScratch | None

    @property
    def pays(self) -> bool | None:
        """Whether growing ended lower than the best fixed size."""
        return None if self.best is None else self.loss < self.best.loss


def verdict(stages: Line, folder: Path) -> Verdict:
    """Compares a run with those from scratch in `folder`, each a folder of a run with its stage's config.yaml and
    metrics.jsonl.

    Raises UserError when there is none, or one is of other held-out text.
    """
    folders = sorted(path for path in folder.glob("*/") if any(path.glob("*/metrics.jsonl")))
    if not folders:
        raise UserError(f"{folder}: there are no runs from scratch here; give a folder of run folders")
    lines = comparison.lines(folders)
    metric = comparison.common_metric([stages, *lines])
    end = stages.curve(metric)[-1]
    known = [one for line in lines if (one := _ended(line, stages, metric)).flops <= end["flops"] * (1 + SLACK)]
    return Verdict(metric, end["value"], _best([one for one in known if one.same_size]), _best(known))


def _ended(line: Line, grown: Line, metric: str) -> FromScratch:
    last = line.curve(metric)[-1]
    arch, wanted = (one.stages[-1].architecture for one in (line, grown))
    # Not the scalars: growth may have changed the norms' epsilon.
    same = all(getattr(arch, key) == getattr(wanted, key) for key in ("family", "sizes", "kinds", "calls"))
    loss = last["value"] if isfinite(line.records[-1].get("loss", 0.0)) else float("inf")
    return FromScratch(line.name, arch.parameters(), last["flops"], loss, same)


def _best(some: Sequence[FromScratch]) -> FromScratch | None:
    return min(some, key=lambda one: one.loss, default=None)


def sentences(made: Verdict) -> list[str]:
    """The verdict for people, a sentence a line."""
    words = made.metric.removeprefix("validation_").replace("_", " ")
    lines = [f"This run ended at {made.loss:.4f} {words}."]
    for what, one in (("this size", made.same_size), ("the best fixed size", made.best)):
        if one is None:
            lines.append(f"What the same FLOPs buy from scratch at {what} is not known: no recorded run has so few.")
        else:
            lines.append(
                f"From scratch, {what} ({short(one.parameters)} parameters, {one.name}) ended at {one.loss:.4f} with "
                f"{one.flops:.3g} FLOPs."
            )
    if made.best is not None:
        lines.append(
            "So growing paid: no fixed size is as low with as many FLOPs."
            if made.pays
            else "So at this budget growing did not pay: a fixed size is as low with as many FLOPs."
        )
    return lines

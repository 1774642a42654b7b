"""When a stage ends and the model grows into the next one: after its tokens, a formula's tokens, or at a plateau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from pretrain.config import Curriculum, Plateau, Stage
from pretrain.errors import UserError
from pretrain.estimate.flops import expected, training_flops
from pretrain.runtime import documents
from pretrain.runtime.documents import Number, Object, Text
from pretrain.runtime.files import make_folder, write_json
from pretrain.schedule.progress import Progress

DECISIONS = "decisions"
"""The subfolder of a stage's folder with every decision that the stage took by itself, and its reasons."""


def gstack_tokens(parameters: int, flops: float) -> float:
    """How many tokens the small model should have seen when it is stacked: log10 d = 0.88 log10 N + 163.27 / log10 C -
    5.74 (Du et al. 2024, "Stacking your transformers", section 4.2, growth timing).

    parameters: N, those of the model that it becomes; flops: C, the FLOPs with which that model is to be trained.
    """
    exponent = 0.88 * log10(parameters) + 163.27 / log10(flops) - 5.74
    return 10 ** min(exponent, 300.0)


def plateau(losses: Sequence[float], rule: Plateau) -> list[float] | None:
    """The relative falls that make a plateau, None when there is none.

    losses: of the held-out text, oldest first. A fall is that of the mean of the last `window` losses from the mean of
    as many before them; a plateau is `patience` falls in a row, each at one more validation, below `threshold`.
    """
    falls = []
    for end in range(len(losses) - rule.patience + 1, len(losses) + 1):
        if end < 2 * rule.window:
            return None
        newest, before = (sum(losses[end - back * rule.window :][: rule.window]) for back in (1, 2))
        falls.append(1 - newest / before if before else 0.0)  # a loss of 0 cannot fall
    return falls if all(not fall >= rule.threshold for fall in falls) else None


@dataclass(frozen=True)
class Ending:
    """When a stage ends: after `tokens` of it at the latest, for the `reasons` given; before that at a plateau."""

    tokens: int
    by: str
    reasons: Mapping[str, Any]
    plateau: Plateau | None

    @staticmethod
    def of(curriculum: Curriculum, stage: Stage, before: int) -> Ending:
        """The ending of a stage whose budget is in tokens, like that of the stage it grows into.

        before: tokens that the run had trained on when the stage began.
        """
        t = stage.train
        rule = t.plateau if t.until == "plateau" else None
        spent = Ending(t.tokens, "tokens", {"budget": t.tokens}, rule)
        if t.until != "gstack":
            return spent
        target = curriculum.stages[[s.name for s in curriculum.stages].index(stage.name) + 1]
        arch, tokens = target.model.architecture(), target.train.tokens
        flops = training_flops(arch, target.train.seq_len, ran=expected(arch, target.train)) * tokens
        formula_tokens = gstack_tokens(arch.parameters(), flops)
        reasons = {
            "stage": target.name,
            "parameters": arch.parameters(),
            "flops": flops,
            "tokens_of_the_run": formula_tokens,
            "tokens_before_the_stage": before,
            "budget": t.tokens,
        }
        if formula_tokens - before >= t.tokens:
            return Ending(t.tokens, "tokens", reasons, None)
        return Ending(max(1, round(formula_tokens - before)), "gstack", reasons, None)

    def spent(self, progress: Progress) -> bool:
        """Whether the stage has all the tokens that it may have."""
        return progress.stage_tokens >= self.tokens

    def decision(self, progress: Progress) -> dict[str, Any] | None:
        """Why the stage ends here, None where it goes on: a function of nothing but what a checkpoint holds."""
        place = {"decision": "end", "step": progress.step, "stage_tokens": progress.stage_tokens}
        if self.plateau and (falls := plateau(progress.held_out, self.plateau)):
            rule = vars(self.plateau)
            return {**place, "by": "plateau", "reasons": {**rule, "falls": falls, "losses": list(progress.held_out)}}
        if self.spent(progress):
            return {**place, "by": self.by, "reasons": dict(self.reasons)}
        return None


class Tried(TypedDict):
    """The result of a candidate of a trial, as JSON; a loss that is not finite is null."""

    candidate: Object
    loss_at_once: Number | None
    loss: Number | None
    flops: Number
    seconds: Number


class Trial(TypedDict):
    """The part of decisions/trial.json that a later start goes on from."""

    parent: Text
    config: Object
    tried: list[Tried]


def read_trial(folder: Path) -> Trial | None:
    """What an earlier start of this folder's stage has tried, or None. Raises UserError for a damaged file."""
    path = folder / DECISIONS / "trial.json"
    if not path.exists():
        return None
    try:
        trial: Trial = documents.read(path, Trial)
    except UserError as error:
        raise UserError(f"{error}: remove it, and its candidates are tried again") from error
    return trial


def keep_decision(folder: Path, name: str, decision: Mapping[str, Any] | None) -> None:
    """Write a decision of the stage of this folder as decisions/NAME.json."""
    path = folder / DECISIONS / f"{name}.json"
    make_folder(path.parent)
    write_json(path, decision)

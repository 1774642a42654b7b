"""What the optimizer is told at the beginning of a stage, after each growth event in it, and when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from pretrain.config import Curriculum, Stage
from pretrain.data.corpus import counts
from pretrain.engine.engine import Engine
from pretrain.engine.frozen import Frozen
from pretrain.families.text import budget
from pretrain.runtime.ranks import agreed
from pretrain.schedule.curve import paced, sharing, still, weight_decays
from pretrain.schedule.progress import Progress
from pretrain.state import State


def count_once(curriculum: Curriculum, stage: Stage) -> None:
    """Rank 0 counts the text of what has its budget in epochs, which reads whole corpora, and tells the others
    (collective): the stage, those that share its curve, and the one that it grows into."""
    following = curriculum.stages[curriculum.stages.index(curriculum.stage(stage.name)) + 1 :][:1]

    def count() -> dict[str, int]:
        for one in (stage, *sharing(curriculum, stage), *(following if stage.train.until == "gstack" else ())):
            budget(one)
        return counts.known()

    counts.learn(agreed(count))


@dataclass(frozen=True)
class Pacing:
    """Of a stage with its budget in tokens. curve_ends: tokens of the run at which the learning rate's curve ends, if
    this stage and those that share the curve use all of their budgets."""

    stage: Stage
    curve_ends: int

    @staticmethod
    def of(curriculum: Curriculum, stage: Stage, progress: Progress) -> Pacing:
        """progress: now, anywhere in the stage."""
        begins = progress.tokens - progress.stage_tokens
        later = sum(budget(other) for other in sharing(curriculum, stage))
        return Pacing(stage, begins + stage.train.tokens + later)

    def set(self, engine: Engine, state: State) -> State:
        """The state with a pace for every generation, which the engine then knows, and what it need not train."""
        begins = not state.progress.step
        births = paced(state.births, self.stage, begins, state.progress.tokens, self.curve_ends)
        engine.adam.weight_decays = weight_decays(births, self.stage)
        engine.clip_at(self.stage.train.clip * prod(event.get("clip_scale", 1.0) for event in state.events))
        engine.freeze(Frozen.of(state.arch, state.generations, still(births, self.stage)))
        return replace(state, births=births)

"""What the optimizer is told at the beginning of a stage, after each growth event in it, and when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from pretrain.config import Curriculum, Stage
from pretrain.engine.engine import Engine
from pretrain.engine.frozen import Frozen
from pretrain.estimate import flops
from pretrain.schedule.curve import frozen_generations, paced, sharing, weight_decays
from pretrain.schedule.progress import Progress
from pretrain.state import State


@dataclass(frozen=True)
class Pacing:
    """Of a stage with its budget in tokens, and so those that share its curve. curve_ends: tokens of the run at which
    the learning rate's curve ends, if all of them use all of their budgets."""

    stage: Stage
    curve_ends: int

    @staticmethod
    def of(curriculum: Curriculum, stage: Stage, progress: Progress) -> Pacing:
        """progress: now, anywhere in the stage."""
        begins = progress.tokens - progress.stage_tokens
        later = sum(other.train.tokens for other in sharing(curriculum, stage))
        return Pacing(stage, begins + stage.train.tokens + later)

    def set(self, engine: Engine, state: State) -> State:
        """The state with a pace for every generation, which the engine then knows, and what it need not train."""
        begins = not state.progress.step
        births = paced(state.births, self.stage, begins, state.progress.tokens, self.curve_ends)
        engine.adam.weight_decays = weight_decays(births, self.stage)
        engine.clip_at(self.stage.train.clip * prod(event.get("clip_scale", 1.0) for event in state.events))
        still, fixed = frozen_generations(births, self.stage), flops.fixed(state.arch, self.stage.train.lora)
        engine.freeze(Frozen.of(state.arch, state.generations, still, fixed))
        return replace(state, births=births)

"""Between an engine and the store: what a rank reads to start, and what it writes to be able to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growth import Architecture, Box, Generations, Kept, Plan
from pretrain.checkpoint import KINDS, CorruptCheckpoint, ManifestFields, Reader, model_of, pieces
from pretrain.engine.staging import Staging
from pretrain.guard.health import Health
from pretrain.runtime.malloc import given_back
from pretrain.schedule.curve import Pace

if TYPE_CHECKING:
    from pretrain.engine.engine import Engine  # brings Megatron-core, which the command-line tools do without

PIECE = 16 << 20  # bytes evaluated at a time


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
        """One optimizer step later."""
        return Progress(
            self.step + 1,
            self.stage_tokens + tokens,
            self.tokens + tokens,
            self.flops + flops,
            self.seconds + seconds,
            self.held_out,
        )

    def validated(self, loss: float) -> Progress:
        """After a validation; a loss that is no number says nothing."""
        return replace(self, held_out=(*self.held_out, loss)) if isfinite(loss) else self

    def next_stage(self) -> Progress:
        """The same moment, as the start of a stage."""
        return replace(self, step=0, stage_tokens=0, held_out=())


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


@dataclass(frozen=True)
class State:
    """Everything of a run but its tensors, its configuration and its place in the folder tree."""

    arch: Architecture
    generations: Generations
    births: tuple[Birth, ...]
    progress: Progress
    cursor: Mapping[str, Any] | None
    events: tuple[Mapping[str, Any], ...] = ()
    parent: Mapping[str, Any] | None = None
    health: Health = field(default_factory=Health)

    @staticmethod
    def from_reader(reader: Reader) -> State:
        """The state that a checkpoint holds; raises CorruptCheckpoint when it holds none, or none that makes sense."""
        m = reader.manifest
        arch = model_of(m, reader.path)
        if not m.generations:
            raise CorruptCheckpoint(f"{reader.path}: it has tensors, and nothing is said of a run that made them")
        progress = dict(m.progress)
        health = Health.from_json(progress.pop("health", {}))
        return State(
            arch,
            Generations.from_json(m.generations),
            tuple(Birth.from_json(b) for b in m.generations["each"]),
            Progress(**{**progress, "held_out": tuple(progress.get("held_out", ()))}),
            m.cursor,
            tuple(m.events),
            m.parent,
            health,
        )

    def fields(self, stage: str, config: Mapping[str, Any], steps: Sequence[int]) -> ManifestFields:
        """The manifest of a checkpoint with this state, whose generations have had `steps` updates."""
        births = [asdict(replace(birth, adam_step=n)) for birth, n in zip(self.births, steps, strict=True)]
        return ManifestFields(
            architecture=self.arch.to_json(),
            stage=stage,
            events=self.events,
            generations={**self.generations.to_json(), "each": births},
            cursor=self.cursor or {},
            progress={**asdict(self.progress), "health": asdict(self.health)},
            config=config,
            parent=self.parent,
            shapes={name: tensor.shape for name, tensor in self.arch.tensors().items()},
        )


def fill(engine: Engine, plan: Plan, reader: Reader | None, kinds: Sequence[str] = KINDS) -> None:
    """Evaluate the plan on every box that this rank owns, into its ZeRO partition (not collective).

    Plans are evaluated on the host: straight into a partition that lies there, and in pieces that are copied to one on
    a device. Reads nothing but the blocks that those boxes are made of. Needs a few times `PIECE` of memory. A
    checkpoint without moments gives zeros for them.
    """

    def read(kind: str, name: str, box: Box) -> Tensor:
        assert reader is not None
        return reader.read(kind, name, box) if reader.has(kind) else torch.zeros(box.shape)

    on_host = all(owned.weight.device.type == "cpu" for owned in engine.owned)
    staging = None if on_host else Staging(PIECE // 4, pinned=True)
    with given_back(PIECE // 2):
        kept: Kept = {}
        for owned in engine.owned:
            for kind in kinds:
                fragment = getattr(owned, kind)
                fragment.zero_()  # physical padding
                for box in owned.boxes:
                    view = box.view(fragment)
                    for part in pieces(box.box, PIECE):
                        target = view[part.relative_to(box.box).slices()]
                        evaluate = partial(plan.evaluate, box.tensor, part, read, kind, kept=kept)
                        if staging:
                            staging.put(target, evaluate)
                        else:
                            evaluate(out=target)


def publish(engine: Engine, state: State) -> None:
    """After `fill`: tell the optimizer the generations, and give every rank its model weights (collective)."""
    engine.describe_generations(
        lambda box: state.generations.of(state.arch.tensor(box.tensor), box.box), [b.adam_step for b in state.births]
    )
    engine.publish_weights()


def boxes(engine: Engine) -> dict[str, list[tuple[str, Box, Tensor]]]:
    """What this rank writes: per kind, the boxes that no other rank writes, as views of its partition."""
    written = [owned for owned in engine.owned if owned.parameter.owner]
    return {
        kind: [(box.tensor, box.box, box.view(getattr(owned, kind))) for owned in written for box in owned.boxes]
        for kind in KINDS
    }
